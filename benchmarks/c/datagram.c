/* Ping-pong with datagrams: --sockets N, --flight K on each, --size BYTES. An operation is one datagram there and
 * back. What does not come back within LATE is lost, counted, and sent again. Every byte is checked. */
#include "common.h"

#define LATE (SECOND / 5)
#define MOST 256

struct label {
    uint32_t slot;
    uint32_t number;
};

struct slot {
    uint32_t number;
    int waiting;
    uint64_t sent;
};

struct line {
    int descriptor, waiting;
    uint64_t heard;
    struct slot slots[MOST];
    struct mmsghdr out[MOST];
    struct iovec out_parts[MOST][2];
    struct label labels[MOST];
};

static size_t size;
static int flight;
static char *pattern;
static uint64_t lost_count;

static void send_slots(struct line *line, const uint32_t *slots, int count) {
    uint64_t time = now();
    for (int place = 0; place < count; place++) {
        struct slot *slot = &line->slots[slots[place]];
        slot->sent = time;
        slot->waiting = 1;
        line->labels[place] = (struct label){slots[place], ++slot->number};
        line->out_parts[place][0] = (struct iovec){&line->labels[place], sizeof(struct label)};
        line->out_parts[place][1] = (struct iovec){pattern, size - sizeof(struct label)};
        line->out[place].msg_hdr = (struct msghdr){.msg_iov = line->out_parts[place], .msg_iovlen = 2};
    }
    line->waiting += count;
    for (int done = 0; done < count;) {
        int sent = sendmmsg(line->descriptor, line->out + done, (unsigned)(count - done), 0);
        if (sent < 0 && errno == ENOBUFS) continue;
        if (sent < 0) fail("sendmmsg: %s", strerror(errno));
        done += sent;
    }
}

static int receive(struct line *line, char *buffers) {
    static struct mmsghdr in[MOST];
    static struct iovec parts[MOST];
    for (int place = 0; place < flight; place++) {
        parts[place] = (struct iovec){buffers + (size_t)place * (size + 1), size + 1};
        in[place].msg_hdr = (struct msghdr){.msg_iov = &parts[place], .msg_iovlen = 1};
    }
    int count = recvmmsg(line->descriptor, in, (unsigned)flight, MSG_DONTWAIT, NULL);
    if (count < 0 && errno == EAGAIN) return 0;
    if (count < 0) fail("recvmmsg: %s", strerror(errno));
    uint32_t answered[MOST];
    int fresh = 0;
    uint64_t time = line->heard = last_progress = now();
    for (int place = 0; place < count; place++) {
        const char *data = parts[place].iov_base;
        struct label label;
        memcpy(&label, data, sizeof label);
        if (in[place].msg_len != size || label.slot >= (uint32_t)flight ||
            memcmp(data + sizeof label, pattern, size - sizeof label) != 0)
            fail("what came back is not what was sent");
        struct slot *slot = &line->slots[label.slot];
        if (!slot->waiting || label.number != slot->number) continue; /* it was late, and counted as lost */
        record(time - slot->sent);
        slot->waiting = 0;
        line->waiting--;
        operations++;
        answered[fresh++] = label.slot;
    }
    if (fresh && time < phase_deadline) send_slots(line, answered, fresh);
    return count;
}

static void give_up(struct line *line, uint64_t time) {
    uint32_t again[MOST];
    int count = 0;
    for (int place = 0; place < flight; place++)
        if (line->slots[place].waiting) {
            line->slots[place].waiting = 0;
            again[count++] = (uint32_t)place;
        }
    lost_count += (uint64_t)count;
    line->waiting = 0;
    line->heard = time;
    /* However late the answers come on a busy machine, a phase ends with one. */
    if (time < phase_deadline || !operations) send_slots(line, again, count);
}

static void run(struct line *lines, int count, char *buffers, double length) {
    lost_count = 0;
    begin_phase(length);
    uint32_t all[MOST];
    for (int place = 0; place < flight; place++) all[place] = (uint32_t)place;
    for (int place = 0; place < count; place++) {
        lines[place].heard = phase_began;
        send_slots(&lines[place], all, flight);
    }
    for (int waiting = 1; waiting;) {
        uint64_t since = now();
        int received = 0;
        waiting = 0;
        for (int place = 0; place < count; place++) {
            struct line *line = &lines[place];
            int some = line->waiting ? receive(line, buffers) : 0;
            if (!some && line->waiting && since > line->heard + LATE) give_up(line, since);
            received += some;
            waiting |= line->waiting > 0;
        }
        if (received == 0 && waiting) found_nothing(since);
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    int count = (int)number_option("--sockets", 4, 1, 64);
    flight = (int)number_option("--flight", 16, 1, MOST);
    size = (size_t)number_option("--size", 64, 16, 65507);
    pattern = allocate(size, 1);
    for (size_t place = 0; place < size; place++) pattern[place] = (char)(place * 31 + 7);
    char *buffers = allocate((size_t)flight, size + 1);
    struct line *lines = allocate((size_t)count, sizeof *lines);
    struct sockaddr_in to = loopback(port, 0);
    for (int place = 0; place < count; place++) {
        lines[place].descriptor = socket(AF_INET, SOCK_DGRAM, 0);
        if (connect(lines[place].descriptor, (void *)&to, sizeof to) < 0) fail("connect: %s", strerror(errno));
    }
    run(lines, count, buffers, warm_up);
    wait_for_harness();
    run(lines, count, buffers, seconds);
    char more[64];
    snprintf(more, sizeof more, ", \"lost\": %llu", (unsigned long long)lost_count);
    report(more);
    return 0;
}
