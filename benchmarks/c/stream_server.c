/* The peer: a TCP echo server on epoll. Level-triggered; what the kernel does not take waits in memory, and while
 * it waits nothing more is read from that client. */
#include "common.h"

#define BLOCK 65536

struct link {
    int descriptor;
    size_t start, end;
    char *pending;
};

static int poller;
static char block[BLOCK];

static void drop(struct link *link) {
    close(link->descriptor);
    free(link->pending);
    free(link);
}

static void watch(struct link *link, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = link};
    epoll_ctl(poller, EPOLL_CTL_MOD, link->descriptor, &event);
}

static void flush(struct link *link) {
    ssize_t count = send(link->descriptor, link->pending + link->start, link->end - link->start, 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count < 0) {
        drop(link);
        return;
    }
    link->start += (size_t)count;
    if (link->start == link->end) {
        free(link->pending);
        link->pending = NULL;
        watch(link, EPOLLIN);
    }
}

static void echo(struct link *link) {
    ssize_t count = recv(link->descriptor, block, BLOCK, 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) {
        drop(link);
        return;
    }
    ssize_t sent = send(link->descriptor, block, (size_t)count, 0);
    if (sent < 0 && errno != EAGAIN) {
        drop(link);
        return;
    }
    if (sent < 0) sent = 0;
    if (sent == count) return;
    link->start = 0;
    link->end = (size_t)(count - sent);
    link->pending = allocate(link->end, 1);
    memcpy(link->pending, block + sent, link->end);
    watch(link, EPOLLOUT);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    alarm(0);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = loopback(port, 0);
    if (bind(listener, (void *)&at, sizeof at) < 0 || listen(listener, 1024) < 0)
        fail("port %d: %s", port, strerror(errno));
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, 256, -1);
        for (int place = 0; place < ready; place++) {
            struct link *link = events[place].data.ptr;
            if (link == NULL) {
                int descriptor;
                while ((descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    link = allocate(1, sizeof *link);
                    link->descriptor = descriptor;
                    event = (struct epoll_event){.events = EPOLLIN, .data.ptr = link};
                    epoll_ctl(poller, EPOLL_CTL_ADD, descriptor, &event);
                }
            } else if (link->pending) {
                flush(link);
            } else {
                echo(link);
            }
        }
    }
}
