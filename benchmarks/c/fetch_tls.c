/* Downloads over HTTPS: --name NAME --length BYTES. An operation is one whole file, over one connection that is kept.
 * What comes is checked while warming up, by the pattern of `benchmarks/files.py`.
 * OpenSSL is loaded at run time, by the few functions that are used: its headers are not needed. */
#include "common.h"

#include <dlfcn.h>

#define BLOCK (1 << 20)
#define READ (1 << 18)
#define HEADER 8192

static void *(*tls_method)(void);
static void *(*tls_context)(const void *);
static void *(*tls_new)(void *);
static int (*tls_set_fd)(void *, int), (*tls_connect)(void *);
static int (*tls_read)(void *, void *, int), (*tls_write)(void *, const void *, int);

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) fail("OpenSSL has no %s", name);
    return found;
}

static void load(void) {
    void *library = dlopen("libssl.so.3", RTLD_NOW);
    if (library == NULL) fail("libssl.so.3 is not installed");
    *(void **)&tls_method = symbol(library, "TLS_client_method");
    *(void **)&tls_context = symbol(library, "SSL_CTX_new");
    *(void **)&tls_new = symbol(library, "SSL_new");
    *(void **)&tls_set_fd = symbol(library, "SSL_set_fd");
    *(void **)&tls_connect = symbol(library, "SSL_connect");
    *(void **)&tls_read = symbol(library, "SSL_read");
    *(void **)&tls_write = symbol(library, "SSL_write");
}

static void fetch(void *tls, const char *name, uint64_t length, char *buffer, char *pattern, int checking) {
    char request[1024], header[HEADER];
    int asked = snprintf(request, sizeof request, "GET /%s HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: fetch\r\n\r\n", name);
    if (tls_write(tls, request, asked) != asked) fail("the server did not take the request");
    int size = 0;
    char *end = NULL;
    while (end == NULL) {
        int count = tls_read(tls, header + size, HEADER - 1 - size);
        if (count <= 0) fail("the server closed within the header");
        size += count;
        header[size] = 0;
        end = strstr(header, "\r\n\r\n");
    }
    int status = 0;
    if (sscanf(header, "HTTP/1.%*d %d", &status) != 1 || status != 200) fail("the answer has status %d", status);
    char *told = strcasestr(header, "\r\nContent-Length:");
    if (told == NULL || strtoull(told + 17, NULL, 10) != length) fail("the answer has another length than the file");
    int early = size - (int)(end + 4 - header);
    memcpy(buffer, end + 4, (size_t)early);
    uint64_t received = 0;
    for (int count = early; received < length; count = 0) {
        if (count == 0 && (count = tls_read(tls, buffer, READ)) <= 0)
            fail("the server closed after %llu bytes", (unsigned long long)received);
        if ((uint64_t)count > length - received) fail("more came than the file holds");
        for (int place = 0; checking && place < count;) {
            uint64_t offset = received + (uint64_t)place, number = offset / BLOCK;
            size_t here = BLOCK - offset % BLOCK, left = (size_t)(count - place);
            if (here > left) here = left;
            /* The first eight bytes of a block are its number. */
            memcpy(pattern, &number, sizeof number);
            if (memcmp(buffer + place, pattern + offset % BLOCK, here) != 0) fail("what came is not what the file holds");
            place += (int)here;
        }
        received += (uint64_t)count;
        last_progress = now();
    }
}

static void run(void *tls, const char *name, uint64_t length, char *buffer, char *pattern, double time, int checking) {
    begin_phase(time);
    do {
        uint64_t began = now();
        fetch(tls, name, length, buffer, pattern, checking);
        record(now() - began);
        operations++;
    } while (now() < phase_deadline);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    const char *name = text_option("--name", NULL);
    if (name == NULL) fail("--name NAME is needed");
    uint64_t length = (uint64_t)number_option("--length", 4096, 1, 1e13);
    load();
    char *buffer = allocate(READ, 1), *pattern = allocate(BLOCK, 1);
    for (uint64_t place = 0; place < BLOCK / 8; place++) {
        uint64_t word = place * 0x9E3779B97F4A7C15ull;
        memcpy(pattern + 8 * place, &word, 8);
    }
    void *tls = tls_new(tls_context(tls_method()));
    tls_set_fd(tls, connect_from(0, 0));
    if (tls_connect(tls) != 1) fail("the server does not speak TLS");
    run(tls, name, length, buffer, pattern, warm_up, 1);
    wait_for_harness();
    run(tls, name, length, buffer, pattern, seconds, 0);
    report("");
    return 0;
}
