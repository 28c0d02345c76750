/* Chat: --members N come into one room, one of them speaks, with --flight W (a list, such as 1,64: a phase each)
 * messages of 64 bytes that not all have received yet. --dialect line (netsvc: everybody is in the lobby at once)
 * or irc (--password for servers that ask for one; PING is answered), or websocket, whose messages are lines of IRC;
 * --entering N members come in at a time: some
 * servers hurry only with many, some have a short queue. An operation is one delivery; a latency is
 * from the sending of a message to its last delivery. Every receiver must get every message, whole and in order. */
#include "common.h"

#define TEXT 64
#define MARK "fanout message "
#define BUFFER 65536
#define MOST_FLIGHT 1024

enum { ASKING, CONNECTED, REGISTERED, INSIDE };

struct member {
    int descriptor, number, state;
    uint32_t expected;
    size_t held;
    char buffer[BUFFER];
};

static struct member *members;
static int count, irc, websocket, poller, inside, entering, most_entering;
static const char *password;
static uint32_t sent_number;
static uint64_t sent_at[MOST_FLIGHT];
static int missing[MOST_FLIGHT];
static int waiting;

static void say(struct member *member, const char *data, size_t size) {
    while (size) {
        ssize_t done = send(member->descriptor, data, size, 0);
        if (done < 0 && errno == EAGAIN) continue; /* the server does not read: the alarm ends it */
        if (done < 0) fail("send: %s", strerror(errno));
        data += done;
        size -= (size_t)done;
    }
}

/* A message for each line (RFC 6455, section 5.2), masked with a key of zeros. */
static void say_frames(struct member *member, const char *lines, size_t size) {
    static char frames[MOST_FLIGHT * 128];
    size_t used = 0;
    for (const char *end = lines + size, *stop; lines < end; lines = stop + 1) {
        stop = memchr(lines, '\n', (size_t)(end - lines));
        size_t length = (size_t)(stop - lines) - (stop[-1] == '\r');
        if (length > 125) fail("a line is longer than 125 bytes");
        used += (size_t)sprintf(frames + used, "\x81%c", (int)(0x80 | length));
        memset(frames + used, 0, 4);
        memcpy(frames + used + 4, lines, length);
        used += 4 + length;
    }
    say(member, frames, used);
}

static void say_lines(struct member *member, const char *lines, size_t size) {
    if (websocket) say_frames(member, lines, size);
    else say(member, lines, size);
}

__attribute__((format(printf, 2, 3))) static void say_line(struct member *member, const char *format, ...) {
    char line[512];
    va_list rest;
    va_start(rest, format);
    int size = vsnprintf(line, sizeof line, format, rest);
    va_end(rest);
    say_lines(member, line, (size_t)size < sizeof line ? (size_t)size : sizeof line - 1);
}

static void came_in(struct member *member) {
    if (member->state == INSIDE) return;
    member->state = INSIDE;
    inside++;
    entering--;
}

static void delivered(struct member *member, const char *text) {
    uint32_t number = (uint32_t)strtoul(text + sizeof MARK - 1, NULL, 10);
    if (number != member->expected)
        fail("member %d was to get message %u and got %u", member->number, member->expected, number);
    member->expected++;
    operations++;
    unsigned place = number % MOST_FLIGHT;
    if (--missing[place] == 0) {
        last_progress = now();
        record(last_progress - sent_at[place]);
        waiting--;
    }
}

static void irc_line(struct member *member, const char *line, size_t size) {
    if (size > 5 && memcmp(line, "PING ", 5) == 0) {
        say_line(member, "PONG %.*s\r\n", (int)(size - 5), line + 5);
        return;
    }
    if (member->state == INSIDE) return;
    if (size > 6 && memcmp(line, "ERROR ", 6) == 0) fail("the server says: %.*s", (int)(size < 200 ? size : 200), line);
    const char *word = memchr(line, ' ', size);
    if (line[0] != ':' || word == NULL || size < (size_t)(word - line) + 5) return;
    if (memcmp(word, " 001 ", 5) == 0) {
        member->state = REGISTERED;
        say_line(member, "JOIN #bench\r\n");
    } else if (memcmp(word, " 366 ", 5) == 0) {
        came_in(member);
    } else if (word[1] == '4' && memcmp(word, " 422 ", 5) != 0) {
        fail("the server says: %.*s", (int)(size < 200 ? size : 200), line);
    }
}

static void read_line(struct member *member, const char *line, size_t size) {
    while (size && line[size - 1] == '\r') size--;
    /* Before anything was said, such a line is history of an earlier crowd. */
    if (size > TEXT && memcmp(line + size - TEXT, MARK, sizeof MARK - 1) == 0) {
        if (waiting) delivered(member, line + size - TEXT);
    } else if (irc) {
        irc_line(member, line, size);
    } else if (member->state != INSIDE) {
        /* "you joined lobby"; a version before said "you are in lobby". */
        if (memmem(line, size, "you ", 4) && memmem(line, size, " lobby", 6)) came_in(member);
    }
}

static void introduce(struct member *member) {
    member->state = CONNECTED;
    if (password) say_line(member, "PASS %s\r\n", password);
    say_line(member, "NICK m%04d\r\n", member->number);
    say_line(member, "USER m%04d 0 * :member %d\r\n", member->number, member->number);
}

/* Read the frames, or before them the head of the answer; return where what is not whole begins. */
static char *read_frames(struct member *member, char *start, char *end) {
    if (member->state == ASKING) {
        char *head = memmem(start, (size_t)(end - start), "\r\n\r\n", 4);
        if (head == NULL) return start;
        if (memcmp(start, "HTTP/1.1 101 ", 13) != 0) fail("the server does not switch: %.12s", start);
        start = head + 4;
        introduce(member);
    }
    while (end - start >= 2) {
        unsigned char *frame = (unsigned char *)start;
        size_t length = frame[1], head = 2;
        if (length == 126) {
            if (end - start < 4) break;
            length = (size_t)(frame[2] << 8 | frame[3]), head = 4;
        }
        if (length > 65535) fail("a frame is longer than 65535 bytes");
        if ((size_t)(end - start) < head + length) break;
        if (frame[0] == 0x81) read_line(member, start + head, length);
        else if (frame[0] == 0x89 && length == 0) say(member, "\x8a\x80\0\0\0\0", 6);
        else fail("member %d got a frame %02x", member->number, frame[0]);
        start += head + length;
    }
    return start;
}

static void receive(struct member *member) {
    for (;;) {
        size_t room = BUFFER - member->held;
        if (room == 0) fail("a line is longer than %d bytes", BUFFER);
        ssize_t got = recv(member->descriptor, member->buffer + member->held, room, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            const char *last = member->held > 200 ? member->buffer + member->held - 200 : member->buffer;
            fail("member %d was disconnected%s%.*s", member->number, member->held ? " after " : "",
                 (int)(member->held > 200 ? 200 : member->held), last);
        }
        if (waiting == 0) last_progress = now();
        char *start = member->buffer, *end = member->buffer + member->held + got, *stop;
        if (websocket) start = read_frames(member, start, end);
        else while ((stop = memchr(start, '\n', (size_t)(end - start))) != NULL) {
            read_line(member, start, (size_t)(stop - start));
            start = stop + 1;
        }
        member->held = (size_t)(end - start);
        memmove(member->buffer, start, member->held);
        if ((size_t)got < room) return;
    }
}

static void turn(void) {
    static struct epoll_event events[256];
    uint64_t since = now();
    int ready = epoll_wait(poller, events, 256, 0);
    if (ready == 0) found_nothing(since);
    for (int place = 0; place < ready; place++) receive(events[place].data.ptr);
}

static void enter(struct member *member, int number) {
    member->number = number;
    member->expected = 1;
    member->descriptor = connect_from(0, 0);
    set_nonblocking(member->descriptor);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = member};
    epoll_ctl(poller, EPOLL_CTL_ADD, member->descriptor, &event);
    entering++;
    const char *asking = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                         "Sec-WebSocket-Protocol: text.ircv3.net\r\n\r\n";
    if (websocket) say(member, asking, strlen(asking));
    else if (irc) introduce(member);
    else member->state = CONNECTED;
}

static void speak(int flight) {
    char lines[MOST_FLIGHT * 128];
    size_t size = 0;
    uint64_t time = now();
    for (; waiting < flight; waiting++) {
        uint32_t number = ++sent_number;
        sent_at[number % MOST_FLIGHT] = time;
        missing[number % MOST_FLIGHT] = count - 1;
        size += (size_t)sprintf(lines + size, "%s%s%010u %0*d%s", irc ? "PRIVMSG #bench :" : "", MARK, number,
                                (int)(TEXT - sizeof MARK - 10), 0, irc ? "\r\n" : "\n");
    }
    say_lines(&members[0], lines, size);
}

static void run(int flight, double length) {
    begin_phase(length);
    do {
        if (waiting < flight) speak(flight);
        turn();
    } while (now() < phase_deadline);
    while (waiting) turn();
}

/* What the joining of the last ones still makes the server say is to be over before anything is measured. */
static void settle(void) {
    uint64_t quiet = now() + SECOND / 5;
    while (now() < quiet) {
        uint64_t before = operations;
        static struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, 10);
        for (int place = 0; place < ready; place++) receive(events[place].data.ptr);
        if (ready || operations != before) quiet = now() + SECOND / 5;
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    count = (int)number_option("--members", 100, 2, 10000);
    websocket = strcmp(text_option("--dialect", "line"), "websocket") == 0;
    irc = websocket || strcmp(text_option("--dialect", "line"), "irc") == 0;
    password = text_option("--password", NULL);
    most_entering = (int)number_option("--entering", 1000, 1, 10000);
    members = allocate((size_t)count, sizeof *members);
    poller = epoll_create1(0);
    begin_phase(0);
    for (int place = 0; inside < count; turn())
        while (place < count && entering < most_entering) {
            enter(&members[place], place);
            place++;
        }
    settle();
    char *list = strdup(text_option("--flight", "1")), *rest = list;
    for (char *word; (word = strsep(&rest, ",")) != NULL;) {
        int flight = atoi(word);
        if (flight < 1 || flight > MOST_FLIGHT / 2) fail("--flight %s: numbers from 1 to %d", word, MOST_FLIGHT / 2);
        run(flight, warm_up);
        wait_for_harness();
        run(flight, seconds);
        report("");
    }
    return 0;
}
