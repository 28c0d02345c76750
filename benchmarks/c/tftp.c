/* Downloads over TFTP, one after the other: --name NAME --length BYTES --blksize BYTES --window BLOCKS. An operation is
 * one whole file. The files hold the pattern of `benchmarks/files.py`, which is checked in full while warming up.
 * Without a packet for LATE the last acknowledgement is sent again, and counted as lost. */
#include "common.h"

#define BLOCK (1 << 20)
#define LATE (SECOND / 5)
#define MOST 64
#define LONGEST 65536

static const char *name;
static uint64_t length, lost_count;
static size_t block_size;
static unsigned window;
static int checking;
static char *pattern, *buffers;

static void check(uint64_t offset, const char *data, size_t count) {
    while (count) {
        size_t place = offset % BLOCK, here = BLOCK - place < count ? BLOCK - place : count;
        /* The first eight bytes of a block are its number. */
        uint64_t number = offset / BLOCK;
        memcpy(pattern, &number, sizeof number);
        if (memcmp(data, pattern + place, here) != 0) fail("what came is not what the file holds");
        data += here;
        offset += here;
        count -= here;
    }
}

static size_t request(char *packet) {
    char *end = packet + 2;
    packet[0] = 0;
    packet[1] = 1;
    end += sprintf(end, "%s", name) + 1;
    end += sprintf(end, "octet") + 1;
    end += sprintf(end, "blksize") + 1;
    end += sprintf(end, "%zu", block_size) + 1;
    end += sprintf(end, "windowsize") + 1;
    end += sprintf(end, "%u", window) + 1;
    return (size_t)(end - packet);
}

static void acknowledge(int descriptor, uint64_t block) {
    unsigned char packet[4] = {0, 4, (unsigned char)(block >> 8), (unsigned char)block};
    if (send(descriptor, packet, sizeof packet, 0) < 0) fail("send: %s", strerror(errno));
}

/* Waits for the answer to the request, whose port is that of the transfer. */
static void begin(int descriptor) {
    char packet[1024], answer[1024];
    struct sockaddr_in to = loopback(port, 0), from;
    size_t size = request(packet);
    uint64_t sent = 0;
    for (;;) {
        uint64_t since = now();
        if (since > sent + 5 * LATE) {
            if (sendto(descriptor, packet, size, 0, (void *)&to, sizeof to) < 0) fail("sendto: %s", strerror(errno));
            sent = since;
        }
        socklen_t room = sizeof from;
        ssize_t count = recvfrom(descriptor, answer, sizeof answer - 1, MSG_DONTWAIT, (void *)&from, &room);
        if (count < 0 && errno != EAGAIN) fail("recvfrom: %s", strerror(errno));
        if (count < 0) {
            found_nothing(since);
            continue;
        }
        answer[count] = 0;
        if (count < 2 || answer[1] != 6) fail("the answer has the opcode %d: %s", answer[1], answer + 4);
        break;
    }
    size_t agreed = 0, blocks = 0;
    if (connect(descriptor, (void *)&from, sizeof from) < 0) fail("connect: %s", strerror(errno));
    ssize_t count = (ssize_t)sizeof answer;
    for (char *word = answer + 2; word + strlen(word) + 1 < answer + count && *word;) {
        char *value = word + strlen(word) + 1;
        if (strcasecmp(word, "blksize") == 0) agreed = strtoul(value, NULL, 10);
        if (strcasecmp(word, "windowsize") == 0) blocks = strtoul(value, NULL, 10);
        word = value + strlen(value) + 1;
    }
    if (agreed != block_size || blocks != window) fail("the server agrees to blocks of %zu, %zu a time", agreed, blocks);
}

static void download(void) {
    static struct mmsghdr in[MOST];
    static struct iovec parts[MOST];
    int descriptor = socket(AF_INET, SOCK_DGRAM, 0), room = 4 << 20;
    if (descriptor < 0) fail("socket: %s", strerror(errno));
    if (setsockopt(descriptor, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    for (int place = 0; place < MOST; place++) {
        parts[place] = (struct iovec){buffers + (size_t)place * LONGEST, LONGEST};
        in[place].msg_hdr = (struct msghdr){.msg_iov = &parts[place], .msg_iovlen = 1};
    }
    uint64_t began = now(), heard = began, block = 0, acknowledged = 0;
    begin(descriptor);
    acknowledge(descriptor, 0);
    for (int ended = 0; !ended;) {
        uint64_t since = now();
        int count = recvmmsg(descriptor, in, MOST, MSG_DONTWAIT, NULL), gap = 0;
        if (count < 0 && errno != EAGAIN) fail("recvmmsg: %s", strerror(errno));
        if (count < 0) {
            if (since > heard + LATE) {
                lost_count++;
                acknowledge(descriptor, acknowledged = block);
                heard = since;
            }
            found_nothing(since);
            continue;
        }
        heard = last_progress = since;
        for (int place = 0; place < count && !ended; place++) {
            unsigned char *data = parts[place].iov_base;
            size_t size = in[place].msg_len;
            if (size < 4 || data[1] != 3) fail("the server sent the opcode %d", data[1]);
            if ((uint16_t)(data[2] << 8 | data[3]) != (uint16_t)(block + 1)) {
                gap = 1;
                continue;
            }
            if (checking) check(block * block_size, (char *)data + 4, size - 4);
            block++;
            if (size - 4 < block_size) {
                if ((block - 1) * block_size + size - 4 != length) fail("the file ends after %zu more", size - 4);
                acknowledge(descriptor, block);
                ended = 1;
            } else if (block == acknowledged + window)
                acknowledge(descriptor, acknowledged = block);
        }
        if (gap && !ended && block != acknowledged) {
            lost_count++;
            acknowledge(descriptor, acknowledged = block);
        }
    }
    close(descriptor);
    last_progress = now();
    record(last_progress - began);
    operations++;
}

static void run(double time) {
    begin_phase(time);
    lost_count = 0;
    do download();
    while (last_progress < phase_deadline);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    name = text_option("--name", NULL);
    if (name == NULL) fail("--name NAME is needed");
    length = (uint64_t)number_option("--length", 4096, 1, 1e13);
    block_size = (size_t)number_option("--blksize", 512, 8, 65464);
    window = (unsigned)number_option("--window", 16, 1, 65535);
    buffers = allocate(MOST, LONGEST);
    pattern = allocate(BLOCK, 1);
    for (uint64_t place = 0; place < BLOCK / 8; place++) {
        uint64_t word = place * 0x9E3779B97F4A7C15ull;
        memcpy(pattern + 8 * place, &word, 8);
    }
    checking = 1;
    run(warm_up);
    checking = 0;
    wait_for_harness();
    run(seconds);
    char more[64];
    snprintf(more, sizeof more, ", \"lost\": %llu", (unsigned long long)lost_count);
    report(more);
    return 0;
}
