/* What the load generators share: options, time, latencies, the talk with the harness.
 *
 * A generator connects, warms up, prints "ready", waits for a line on its standard input, runs, and prints one line
 * of JSON; then the next phase, if there is one. Whatever goes wrong is one line on its standard error and status 1.
 */
#ifndef COMMON_H
#define COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    vfprintf(stderr, format, rest);
    va_end(rest);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

/* Options are pairs of words: --name value. */
static int option_count;
static char **option_words;

static const char *text_option(const char *name, const char *otherwise) {
    for (int place = 1; place + 1 < option_count; place += 2)
        if (strcmp(option_words[place], name) == 0) return option_words[place + 1];
    return otherwise;
}

static double number_option(const char *name, double otherwise, double lowest, double highest) {
    const char *text = text_option(name, NULL);
    if (text == NULL) return otherwise;
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= lowest && value <= highest))
        fail("%s %s: a number from %g to %g", name, text, lowest, highest);
    return value;
}

static void expired(int number) {
    (void)number;
    static const char line[] = "the run took far too long and was given up\n";
    if (write(2, line, sizeof line - 1) < 0) _exit(2);
    _exit(1);
}

static int port;
/* Seconds; without any answer for so long as `patience`, the server counts as dead. */
static double warm_up, seconds, patience;

static void read_options(int count, char **words) {
    option_count = count;
    option_words = words;
    port = (int)number_option("--port", 0, 1, 65535);
    if (port == 0) fail("--port PORT is needed");
    warm_up = number_option("--warm-up", 0.3, 0, 60);
    seconds = number_option("--seconds", 2, 0.001, 600);
    patience = number_option("--patience", 10, 0.001, 600);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGALRM, expired);
    /* No loop runs for ever, whatever the server does. */
    alarm((unsigned)(120 + 4 * (seconds + warm_up)));
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

/* Latencies, in 64 steps for each power of two: an error of at most 1.6 % in constant memory. */
#define STEPS 64
static uint64_t latencies[64 * STEPS];
static uint64_t latency_count;

static void record(uint64_t nanoseconds) {
    unsigned power = 63 - (unsigned)__builtin_clzll(nanoseconds | STEPS);
    latencies[power * STEPS + ((nanoseconds >> (power - 6)) & (STEPS - 1))]++;
    latency_count++;
}

static double percentile_us(double share) {
    uint64_t wanted = (uint64_t)((double)latency_count * share), seen = 0;
    for (unsigned place = 0; place < 64 * STEPS; place++) {
        seen += latencies[place];
        if (seen > wanted) {
            unsigned power = place / STEPS;
            double width = (double)(1ull << (power - 6));
            return ((double)((1ull << power)) + (place % STEPS + 0.5) * width) / 1000;
        }
    }
    return 0;
}

/* A phase: what was counted, and the time in polls that found nothing, which is no work. */
static uint64_t operations, phase_began, phase_deadline, idle_time, last_progress;
static double cpu_began;

static double cpu_seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void begin_phase(double length) {
    operations = idle_time = latency_count = 0;
    memset(latencies, 0, sizeof latencies);
    phase_began = last_progress = now();
    phase_deadline = phase_began + (uint64_t)(length * 1e9);
    cpu_began = cpu_seconds();
}

static void found_nothing(uint64_t since) {
    uint64_t time = now();
    idle_time += time - since;
    if ((double)(time - last_progress) > patience * 1e9) fail("the server has answered nothing for %g s", patience);
}

static void wait_for_harness(void) {
    puts("ready");
    fflush(stdout);
    int byte;
    while ((byte = getchar()) != '\n')
        if (byte == EOF) fail("nobody said when to begin");
}

/* `more` is further members of the JSON object, each with a comma before it. */
static void report(const char *more) {
    double length = (double)(now() - phase_began) / 1e9;
    double cpu = cpu_seconds() - cpu_began - (double)idle_time / 1e9;
    printf("{\"operations\": %llu, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"cpu_s\": %.6f%s}\n",
           (unsigned long long)operations, length, percentile_us(0.50), percentile_us(0.99), cpu < 0 ? 0 : cpu, more);
    fflush(stdout);
}

static struct sockaddr_in loopback(int number, int host) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)number)};
    address.sin_addr.s_addr = htonl(0x7f000001u + (unsigned)host);
    return address;
}

/* One address has some 28,000 free ports, and a closed connection keeps its port for a minute: take turns. */
static int connect_from(int host, int flags) {
    int descriptor = socket(AF_INET, SOCK_STREAM | flags, 0), on = 1;
    if (descriptor < 0) fail("socket: %s", strerror(errno));
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (host) {
        setsockopt(descriptor, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        struct sockaddr_in from = loopback(0, host);
        if (bind(descriptor, (void *)&from, sizeof from) < 0) fail("bind: %s", strerror(errno));
    }
    struct sockaddr_in to = loopback(port, 0);
    if (connect(descriptor, (void *)&to, sizeof to) < 0 && errno != EINPROGRESS)
        fail("connect to port %d: %s", port, strerror(errno));
    return descriptor;
}

static void set_nonblocking(int descriptor) {
    fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (memory == NULL) fail("no memory");
    return memory;
}

#endif
