/* Connect, echo 64 bytes, close, and again: --parallel N. An operation is one connection. The client closes first. */
#include "common.h"

#define SIZE 64
/* Source addresses that take turns. */
#define HOSTS 200

struct link {
    int descriptor, asked;
    size_t received;
    uint64_t began;
};

static char pattern[SIZE];
static int poller, active, host;

static void ask(struct link *link) {
    ssize_t count = send(link->descriptor, pattern, SIZE, 0);
    if (count < 0 && (errno == EAGAIN || errno == ENOTCONN)) return;
    if (count != SIZE) fail("send: %s", strerror(errno));
    link->asked = 1;
}

static void begin(struct link *link) {
    link->asked = 0;
    link->received = 0;
    link->began = now();
    link->descriptor = connect_from(1 + host++ % HOSTS, SOCK_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = link};
    epoll_ctl(poller, EPOLL_CTL_ADD, link->descriptor, &event);
    active++;
    ask(link);
}

static void receive(struct link *link) {
    char buffer[SIZE];
    ssize_t count = recv(link->descriptor, buffer, SIZE - link->received, 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) fail("recv: %s", count ? strerror(errno) : "the server closed the connection");
    if (memcmp(buffer, pattern + link->received, (size_t)count) != 0) fail("what came back is not what was sent");
    link->received += (size_t)count;
    if (link->received < SIZE) return;
    close(link->descriptor);
    uint64_t time = last_progress = now();
    record(time - link->began);
    operations++;
    active--;
    if (time < phase_deadline) begin(link);
}

static void run(struct link *links, int count, double length) {
    static struct epoll_event events[256];
    begin_phase(length);
    for (int place = 0; place < count; place++) begin(&links[place]);
    while (active) {
        uint64_t since = now();
        int ready = epoll_wait(poller, events, 256, 0);
        if (ready == 0) found_nothing(since);
        for (int place = 0; place < ready; place++) {
            struct link *link = events[place].data.ptr;
            if (!link->asked) ask(link);
            if (link->asked) receive(link);
        }
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    int count = (int)number_option("--parallel", 50, 1, 1000);
    for (int place = 0; place < SIZE; place++) pattern[place] = (char)(place * 31 + 7);
    struct link *links = allocate((size_t)count, sizeof *links);
    poller = epoll_create1(0);
    run(links, count, warm_up);
    wait_for_harness();
    run(links, count, seconds);
    report("");
    return 0;
}
