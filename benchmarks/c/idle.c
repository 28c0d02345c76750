/* Opens --connections N, echoes one byte on each, so that the server has surely accepted it, and keeps them. */
#include "common.h"

int main(int argc, char **argv) {
    read_options(argc, argv);
    int count = (int)number_option("--connections", 10000, 1, 60000);
    int *descriptors = allocate((size_t)count, sizeof *descriptors);
    struct timeval limit = {.tv_sec = (time_t)patience, .tv_usec = (suseconds_t)(patience * 1e6) % 1000000};
    begin_phase(seconds);
    for (int place = 0; place < count; place++) {
        descriptors[place] = connect_from(1 + place % 8, 0);
        setsockopt(descriptors[place], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        char byte = (char)place, back;
        uint64_t since = now();
        if (send(descriptors[place], &byte, 1, 0) != 1) fail("send: %s", strerror(errno));
        if (recv(descriptors[place], &back, 1, 0) != 1 || back != byte)
            fail("connection %d of %d was not served", place + 1, count);
        record(now() - since);
        operations++;
    }
    wait_for_harness();
    report("");
    for (int place = 0; place < count; place++) close(descriptors[place]);
    return 0;
}
