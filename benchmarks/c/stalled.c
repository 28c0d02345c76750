/* Downloads that stall: --name NAME --connections N. Each asks for the file, waits for its first byte, and reads nothing. */
#include "common.h"

int main(int argc, char **argv) {
    read_options(argc, argv);
    int count = (int)number_option("--connections", 1000, 1, 60000);
    const char *name = text_option("--name", NULL);
    if (name == NULL) fail("--name NAME is needed");
    char request[1024], byte;
    int size = snprintf(request, sizeof request, "GET /%s HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: stalled\r\n\r\n", name);
    int *descriptors = allocate((size_t)count, sizeof *descriptors);
    struct timeval limit = {.tv_sec = (time_t)patience, .tv_usec = (suseconds_t)(patience * 1e6) % 1000000};
    begin_phase(seconds);
    for (int place = 0; place < count; place++) {
        descriptors[place] = connect_from(1 + place % 8, 0);
        setsockopt(descriptors[place], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        uint64_t since = now();
        if (send(descriptors[place], request, (size_t)size, 0) != size) fail("send: %s", strerror(errno));
        if (recv(descriptors[place], &byte, 1, MSG_PEEK) != 1 || byte != 'H')
            fail("download %d of %d was not begun", place + 1, count);
        record(now() - since);
        operations++;
    }
    wait_for_harness();
    report("");
    for (int place = 0; place < count; place++) close(descriptors[place]);
    return 0;
}
