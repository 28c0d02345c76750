/* Downloads: --name NAME --length BYTES --parallel N --dialect classic|http|keep. An operation is one whole file.
 * classic: the name and a line end, then bytes until FIN. http: one GET a connection. keep: many GETs a connection.
 * --background N fetches --background-name all the while, without recording it; the kernel discards these bytes.
 * The files hold the pattern of `benchmarks/files.py`: it is checked in full while warming up and for small files. */
#include "common.h"

#define BLOCK (1 << 20)
#define SMALL (1 << 16)
#define READ (1 << 18)
#define HEADER 8192

struct slot {
    int descriptor, background, asked, headed;
    uint64_t received, length, began;
    size_t header_size;
    char header[HEADER];
};

static const char *name, *background_name;
static uint64_t length, background_bytes;
static int classic, keep, poller, active, checking, host;
static char *buffer, *pattern;

static void check(const struct slot *slot, const char *data, size_t count) {
    uint64_t offset = slot->received;
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

static void ask(struct slot *slot) {
    char request[1024];
    const char *wanted = slot->background ? background_name : name;
    int count = classic ? snprintf(request, sizeof request, "%s\n", wanted)
                        : snprintf(request, sizeof request,
                                   "GET /%s HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: fetch\r\nAccept: */*\r\n"
                                   "Connection: %s\r\n\r\n",
                                   wanted, keep ? "keep-alive" : "close");
    ssize_t sent = send(slot->descriptor, request, (size_t)count, 0);
    if (sent < 0 && (errno == EAGAIN || errno == ENOTCONN)) return;
    if (sent != count) fail("send: %s", strerror(errno));
    slot->asked = 1;
}

static void begin(struct slot *slot) {
    slot->received = slot->header_size = 0;
    slot->asked = 0;
    slot->headed = classic;
    slot->length = slot->background ? 0 : length;
    slot->began = now();
    if (!slot->background) active++;
    if (slot->descriptor < 0) {
        slot->descriptor = connect_from(1 + host++ % 200, slot->background ? 0 : SOCK_NONBLOCK);
        if (slot->background) set_nonblocking(slot->descriptor);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = slot};
        if (slot->background) event.events = EPOLLIN;
        epoll_ctl(poller, EPOLL_CTL_ADD, slot->descriptor, &event);
    }
    ask(slot);
}

static void finish(struct slot *slot, int ended) {
    last_progress = now();
    if (ended || !keep) {
        close(slot->descriptor);
        slot->descriptor = -1;
    }
    if (slot->background) {
        begin(slot);
        return;
    }
    record(last_progress - slot->began);
    operations++;
    active--;
    if (last_progress < phase_deadline) begin(slot);
}

/* Reads the header; returns the number of body bytes at the end of what was read, or -1 if it is not complete. */
static ssize_t read_header(struct slot *slot, const char *data, size_t count) {
    size_t room = HEADER - 1 - slot->header_size, taken = count < room ? count : room;
    memcpy(slot->header + slot->header_size, data, taken);
    slot->header_size += taken;
    slot->header[slot->header_size] = 0;
    char *end = strstr(slot->header, "\r\n\r\n");
    if (end == NULL) {
        if (taken == room) fail("the header is longer than %d bytes", HEADER);
        return -1;
    }
    end[2] = 0;
    int status = 0;
    if (sscanf(slot->header, "HTTP/1.%*d %d", &status) != 1 || status != 200) fail("the answer has status %d", status);
    char *told = strcasestr(slot->header, "\r\nContent-Length:");
    uint64_t size = told ? strtoull(told + 17, NULL, 10) : 0;
    if (told == NULL || (!slot->background && size != length)) fail("the answer has another length than the file");
    slot->length = size;
    slot->headed = 1;
    return (ssize_t)(count - (size_t)(end + 4 - slot->header - (long)(slot->header_size - taken)));
}

static void receive(struct slot *slot) {
    for (;;) {
        int discard = slot->background && slot->headed;
        ssize_t count = recv(slot->descriptor, buffer, READ, discard ? MSG_TRUNC : 0);
        if (count < 0 && errno == EAGAIN) return;
        if (count < 0) fail("recv: %s", strerror(errno));
        if (count == 0) {
            if (!slot->headed || (slot->length && slot->received != slot->length) || slot->received == 0)
                fail("the server closed after %llu bytes", (unsigned long long)slot->received);
            finish(slot, 1);
            return;
        }
        last_progress = now();
        const char *data = buffer;
        ssize_t left = count;
        if (!slot->headed) {
            left = read_header(slot, buffer, (size_t)count);
            if (left < 0) continue;
            data = buffer + (count - left);
        }
        if (!discard && (checking || slot->length <= SMALL)) check(slot, data, (size_t)left);
        slot->received += (uint64_t)left;
        if (slot->background) background_bytes += (uint64_t)left;
        if (slot->length && slot->received > slot->length) fail("more came than the file holds");
        if (keep && slot->received == slot->length) {
            finish(slot, 0);
            return;
        }
        /* Small requests take turns with the background's blocks: they are not to wait here for its files. */
        if (slot->background) return;
    }
}

static void run(struct slot *slots, int count, int others, double time) {
    static struct epoll_event events[64];
    begin_phase(time);
    background_bytes = 0;
    for (int place = 0; place < count; place++) begin(&slots[place]);
    while (active || (others && !background_bytes)) {
        uint64_t since = now();
        int ready = epoll_wait(poller, events, 64, 0);
        if (ready == 0) found_nothing(since);
        for (int place = 0; place < ready; place++) {
            struct slot *slot = events[place].data.ptr;
            if (!slot->asked) ask(slot);
            if (slot->asked) receive(slot);
        }
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    name = text_option("--name", NULL);
    if (name == NULL) fail("--name NAME is needed");
    background_name = text_option("--background-name", name);
    length = (uint64_t)number_option("--length", 4096, 1, 1e13);
    int count = (int)number_option("--parallel", 10, 1, 1000);
    int others = (int)number_option("--background", 0, 0, 100);
    const char *dialect = text_option("--dialect", "classic");
    classic = strcmp(dialect, "classic") == 0;
    keep = strcmp(dialect, "keep") == 0;
    buffer = allocate(READ, 1);
    pattern = allocate(BLOCK, 1);
    for (uint64_t place = 0; place < BLOCK / 8; place++) {
        uint64_t word = place * 0x9E3779B97F4A7C15ull;
        memcpy(pattern + 8 * place, &word, 8);
    }
    poller = epoll_create1(0);
    struct slot *slots = allocate((size_t)(count + others), sizeof *slots);
    for (int place = 0; place < count + others; place++) {
        slots[place].descriptor = -1;
        slots[place].background = place >= count;
    }
    begin_phase(0);
    for (int place = count; place < count + others; place++) begin(&slots[place]);
    checking = 1;
    run(slots, count, others, warm_up);
    checking = 0;
    wait_for_harness();
    run(slots, count, others, seconds);
    char more[64];
    snprintf(more, sizeof more, ", \"background_bytes\": %llu", (unsigned long long)background_bytes);
    report(more);
    return 0;
}
