/* Ping-pong over streams: --connections N, --size BYTES, --busy 1|0. An operation is one message there and back.
 * Content is checked while warming up, and always up to 1 KiB. */
#include "common.h"

struct link {
    int descriptor;
    size_t sent, received;
    uint64_t began;
    char tag[4];
};

static struct link *links;
static size_t size;
static char *pattern, *buffer;
static int poller, active, checking;

static void lost(const char *what) {
    fail("%s: %s", what, errno ? strerror(errno) : "the server closed the connection");
}

static void send_rest(struct link *link) {
    while (link->sent < size) {
        /* The first bytes name the connection, so that an answer to another one is noticed. */
        memcpy(pattern, link->tag, 4);
        ssize_t count = send(link->descriptor, pattern + link->sent, size - link->sent, 0);
        if (count < 0 && errno == EAGAIN) return;
        if (count < 0) lost("send");
        link->sent += (size_t)count;
    }
}

static void begin(struct link *link) {
    link->sent = link->received = 0;
    link->began = now();
    active++;
    send_rest(link);
}

static void receive(struct link *link) {
    while (link->received < size) {
        size_t wanted = size - link->received;
        ssize_t count = recv(link->descriptor, buffer, wanted, 0);
        if (count < 0 && errno == EAGAIN) return;
        if (count <= 0) {
            if (count == 0) errno = 0;
            lost("recv");
        }
        memcpy(pattern, link->tag, 4);
        if ((checking || size <= 1024) && memcmp(buffer, pattern + link->received, (size_t)count) != 0)
            fail("what came back is not what was sent");
        link->received += (size_t)count;
        if ((size_t)count < wanted) return;
    }
    uint64_t time = last_progress = now();
    record(time - link->began);
    operations++;
    active--;
    if (time < phase_deadline) begin(link);
}

static void run(int count, double length, int timeout) {
    static struct epoll_event events[256];
    begin_phase(length);
    for (int place = 0; place < count; place++) begin(&links[place]);
    while (active) {
        uint64_t since = now();
        int ready = epoll_wait(poller, events, 256, timeout);
        if (ready == 0) found_nothing(since);
        for (int place = 0; place < ready; place++) {
            struct link *link = events[place].data.ptr;
            if (link->sent < size) send_rest(link);
            if (link->received < size) receive(link);
        }
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    int count = (int)number_option("--connections", 100, 1, 60000);
    size = (size_t)number_option("--size", 64, 4, 1 << 24);
    int timeout = number_option("--busy", 1, 0, 1) > 0 ? 0 : 1000;
    links = allocate((size_t)count, sizeof *links);
    pattern = allocate(size, 1);
    buffer = allocate(size, 1);
    for (size_t place = 0; place < size; place++) pattern[place] = (char)(place * 31 + (place >> 8));
    poller = epoll_create1(0);
    for (int place = 0; place < count; place++) {
        struct link *link = &links[place];
        link->descriptor = connect_from(1 + place / 20000, 0);
        memcpy(link->tag, &place, 4);
        set_nonblocking(link->descriptor);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = link};
        epoll_ctl(poller, EPOLL_CTL_ADD, link->descriptor, &event);
    }
    checking = 1;
    run(count, warm_up, timeout);
    checking = 0;
    wait_for_harness();
    run(count, seconds, timeout);
    report("");
    return 0;
}
