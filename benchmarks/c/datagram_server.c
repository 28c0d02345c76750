/* The peer: a UDP echo server, one recvfrom and one sendto a datagram. */
#include "common.h"

int main(int argc, char **argv) {
    read_options(argc, argv);
    alarm(0);
    static char data[65536];
    int descriptor = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in at = loopback(port, 0), from;
    if (bind(descriptor, (void *)&at, sizeof at) < 0) fail("port %d: %s", port, strerror(errno));
    for (;;) {
        socklen_t length = sizeof from;
        ssize_t count = recvfrom(descriptor, data, sizeof data, 0, (void *)&from, &length);
        if (count >= 0) sendto(descriptor, data, (size_t)count, 0, (void *)&from, length);
    }
}
