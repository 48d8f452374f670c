/* Sends prepared mail as fast as the other side takes it, by SMTP or by the milter protocol, and says what came of it as one line of JSON.
 *
 *   load smtp|smtp-tls|milter ADDRESS CORPUS MESSAGES PER_SESSION CONNECTIONS
 *
 * ADDRESS is HOST:PORT or a path. Each connection is a thread that takes the next session as soon as it is free. Everything
 * is in the corpus ready to be sent (tests/bench/corpus.py): the figures are to be the other side's, not ours. Any answer but
 * the good one ends the run with a line on stderr.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_S = 120, ROOM = 1 << 16 };
/* What a milter may ask not to be sent, and not to be waited for (libmilter/mfdef.h). */
enum { LEADING_SPACE = 0x100000 };

struct piece { const char *at; uint32_t size; };
/* One message: whence it comes (source), the session's opening, what is said before the content, the content. */
struct record { struct piece source, opening, envelope, content; };
struct link { int fd; SSL *tls; char in[ROOM]; size_t from, to; };

static const char *protocol, *address;
static struct record *records;
static long count, messages, per_session;
static atomic_long next_session, accepted, edits;
static uint32_t *latencies_us;
static atomic_long measured;
static SSL_CTX *tls_context;

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "load: %s: %s\n", what, detail);
    exit(1);
}

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static struct piece take(const char **at, const char *end) {
    struct piece piece;
    uint32_t size;
    if (end - *at < 4) fail("corpus", "ends in the middle");
    memcpy(&size, *at, 4);
    piece.size = ntohl(size);
    piece.at = *at + 4;
    *at = piece.at + piece.size;
    if (*at > end) fail("corpus", "ends in the middle");
    return piece;
}

static void read_corpus(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("cannot read", path);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *all = malloc((size_t)size);
    if (fread(all, 1, (size_t)size, file) != (size_t)size) fail("cannot read", path);
    fclose(file);
    const char *at = all, *end = all + size;
    long room = 0;
    while (at < end) {
        if (count == room) records = realloc(records, (size_t)(room = room * 2 + 64) * sizeof *records);
        struct record *record = &records[count++];
        record->source = take(&at, end);
        record->opening = take(&at, end);
        record->envelope = take(&at, end);
        record->content = take(&at, end);
    }
    if (!count) fail("no message in", path);
}

static void dial(struct link *link, struct piece source) {
    struct timeval patience = {PATIENCE_S, 0};
    int on = 1;
    link->from = link->to = 0;
    link->tls = NULL;
    if (*address == '/') {
        struct sockaddr_un to = {.sun_family = AF_UNIX};
        strncpy(to.sun_path, address, sizeof to.sun_path - 1);
        link->fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(link->fd, (struct sockaddr *)&to, sizeof to)) { perror("load: connect"); exit(1); }
    } else {
        char host[64], from[64];
        const char *colon = strrchr(address, ':');
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1))};
        struct sockaddr_in ours = {.sin_family = AF_INET};
        snprintf(host, sizeof host, "%.*s", (int)(colon - address), address);
        snprintf(from, sizeof from, "%.*s", (int)source.size, source.at);
        link->fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(link->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (inet_pton(AF_INET, host, &to.sin_addr) != 1 || inet_pton(AF_INET, from, &ours.sin_addr) != 1)
            fail("not an address", from);
        if (bind(link->fd, (struct sockaddr *)&ours, sizeof ours)) { perror("load: bind"); exit(1); }
        if (connect(link->fd, (struct sockaddr *)&to, sizeof to)) { perror("load: connect"); exit(1); }
    }
    setsockopt(link->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(link->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

static void hang_up(struct link *link) {
    if (link->tls) SSL_free(link->tls);
    close(link->fd);
}

static void put(struct link *link, const char *data, size_t size) {
    while (size) {
        ssize_t sent = link->tls ? SSL_write(link->tls, data, (int)size) : send(link->fd, data, size, MSG_NOSIGNAL);
        if (sent <= 0) fail("write", "the other side has gone");
        data += sent;
        size -= (size_t)sent;
    }
}

static void fill(struct link *link) {
    if (link->from == link->to) link->from = link->to = 0;
    if (link->from && link->to == ROOM) {
        memmove(link->in, link->in + link->from, link->to - link->from);
        link->to -= link->from;
        link->from = 0;
    }
    if (link->to == ROOM) fail("read", "an answer larger than 64 KB");
    char *at = link->in + link->to;
    ssize_t got = link->tls ? SSL_read(link->tls, at, (int)(ROOM - link->to)) : recv(link->fd, at, ROOM - link->to, 0);
    if (got <= 0) fail("read", "the other side has gone, or was silent too long");
    link->to += (size_t)got;
}

static void keep_latency(double since) {
    long place = atomic_fetch_add(&measured, 1);
    latencies_us[place] = (uint32_t)((seconds(CLOCK_MONOTONIC) - since) * 1e6);
}

/* SMTP (RFC 5321, pipelined as RFC 2920 allows) */

static void replies(struct link *link, int missing) {
    while (missing) {
        char *line = link->in + link->from;
        char *end = memchr(line, '\n', link->to - link->from);
        if (!end) {
            fill(link);
            continue;
        }
        *end = 0;
        link->from = (size_t)(end + 1 - link->in);
        if (*line != '2' && *line != '3') fail("refused", line);
        if (line[3] != '-') missing--;
    }
}

static void say(struct link *link, struct piece piece, int missing) {
    put(link, piece.at, piece.size);
    replies(link, missing);
}

static const struct piece STARTTLS = {"STARTTLS\r\n", 10}, QUIT = {"QUIT\r\n", 6};

static void smtp_session(struct link *link, long first) {
    const struct record *opener = &records[first % count];
    dial(link, opener->source);
    replies(link, 1);
    say(link, opener->opening, 1);
    if (tls_context) {
        say(link, STARTTLS, 1);
        link->tls = SSL_new(tls_context);
        SSL_set_fd(link->tls, link->fd);
        if (SSL_connect(link->tls) != 1) fail("TLS", "no handshake");
        say(link, opener->opening, 1);
    }
    for (long number = first; number < first + per_session; number++) {
        const struct record *record = &records[number % count];
        double began = seconds(CLOCK_MONOTONIC);
        say(link, record->envelope, 3);
        say(link, record->content, 1);
        keep_latency(began);
        atomic_fetch_add(&accepted, 1);
    }
    say(link, QUIT, 1);
}

/* Milter: the packets are sent one by one, each awaited unless the milter said that it gives no answer. */

static uint32_t agreed;

static char milter_answer(struct link *link) {
    for (;;) {
        uint32_t size;
        while (link->to - link->from < 4) fill(link);
        memcpy(&size, link->in + link->from, 4);
        size = ntohl(size);
        while (link->to - link->from < 4 + (size_t)size) fill(link);
        char command = link->in[link->from + 4];
        if (command == 'O') {
            uint32_t protocol_bits;
            memcpy(&protocol_bits, link->in + link->from + 13, 4);
            agreed = ntohl(protocol_bits);
        }
        link->from += 4 + size;
        if (command == 'i' || command == 'h') atomic_fetch_add(&edits, 1);
        if (command && strchr("acdrtysO", command)) return command;
    }
}

struct packet_rule { char command; uint32_t not_wanted, not_answered; };
static const struct packet_rule RULES[] = {
    {'C', 0x1, 0x1000}, {'H', 0x2, 0x2000}, {'M', 0x4, 0x4000}, {'R', 0x8, 0x8000}, {'T', 0x200, 0x10000},
    {'L', 0x20, 0x80}, {'N', 0x40, 0x40000}, {'B', 0x10, 0x80000}, {'E', 0, 0}, {0, 0, 0},
};

struct outgoing { char data[ROOM * 4]; size_t size; };

static void flush_out(struct link *link, struct outgoing *out) {
    put(link, out->data, out->size);
    out->size = 0;
}

static void add(struct link *link, struct outgoing *out, const char *data, size_t size) {
    if (out->size + size > sizeof out->data) flush_out(link, out);
    memcpy(out->data + out->size, data, size);
    out->size += size;
}

/* A header field's value without the blank behind its colon, for a milter that does not want it. */
static void add_without_blank(struct link *link, struct outgoing *out, const char *packet, uint32_t size) {
    const char *value = memchr(packet + 5, 0, size - 1) + 1;
    size_t name = (size_t)(value - packet);
    if (*value != ' ') {
        add(link, out, packet, 4 + size);
        return;
    }
    uint32_t shorter = htonl(size - 1);
    add(link, out, (char *)&shorter, 4);
    add(link, out, packet + 4, name - 4);
    add(link, out, value + 1, 4 + size - name - 1);
}

static void say_packets(struct link *link, struct outgoing *out, struct piece piece) {
    const char *at = piece.at, *end = at + piece.size;
    while (at < end) {
        uint32_t size;
        memcpy(&size, at, 4);
        size = ntohl(size);
        char command = at[4];
        const struct packet_rule *rule = RULES;
        while (rule->command && rule->command != command) rule++;
        if (rule->command && agreed & rule->not_wanted) {
            at += 4 + size;
            continue;
        }
        if (command == 'L' && !(agreed & LEADING_SPACE))
            add_without_blank(link, out, at, size);
        else
            add(link, out, at, 4 + size);
        at += 4 + size;
        if (!rule->command || (rule->not_answered && agreed & rule->not_answered)) continue;
        flush_out(link, out);
        char answer = milter_answer(link);
        if (command == 'E' ? answer != 'a' && answer != 'c' : answer != 'c')
            fail("the milter answers", (char[]){command, '-', '>', answer, 0});
    }
}

/* Version 6, all actions, all of the protocol but SKIP (0x400). */
static const char NEGOTIATION[17] = {0, 0, 0, 13, 'O', 0, 0, 0, 6, 0, 0, 1, (char)0xff, 0, 0x1f, (char)0xfb, (char)0xff};
static const struct piece MILTER_QUIT = {"\0\0\0\1Q", 5};

static void milter_session(struct link *link, struct outgoing *out, long first) {
    const struct record *opener = &records[first % count];
    dial(link, opener->source);
    put(link, NEGOTIATION, sizeof NEGOTIATION);
    if (milter_answer(link) != 'O') fail("milter", "no negotiation");
    out->size = 0;
    say_packets(link, out, opener->opening);
    for (long number = first; number < first + per_session; number++) {
        const struct record *record = &records[number % count];
        double began = seconds(CLOCK_MONOTONIC);
        say_packets(link, out, record->envelope);
        say_packets(link, out, record->content);
        keep_latency(began);
        atomic_fetch_add(&accepted, 1);
    }
    put(link, MILTER_QUIT.at, MILTER_QUIT.size);
}

static void *work(void *unused) {
    struct link *link = malloc(sizeof *link);
    struct outgoing *out = malloc(sizeof *out);
    for (;;) {
        long first = atomic_fetch_add(&next_session, 1) * per_session;
        if (first >= messages) break;
        if (*protocol == 'm')
            milter_session(link, out, first);
        else
            smtp_session(link, first);
        hang_up(link);
    }
    free(out);
    free(link);
    return unused;
}

static int ascending(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

int main(int argc, char **argv) {
    if (argc != 7) fail("usage", "load smtp|smtp-tls|milter ADDRESS CORPUS MESSAGES PER_SESSION CONNECTIONS");
    protocol = argv[1];
    address = argv[2];
    read_corpus(argv[3]);
    messages = atol(argv[4]);
    per_session = atol(argv[5]);
    long connections = atol(argv[6]);
    if (messages < 1 || per_session < 1 || messages % per_session) fail("usage", "sessions must be whole");
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(protocol, "smtp-tls")) {
        tls_context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_verify(tls_context, SSL_VERIFY_NONE, NULL);
    }
    latencies_us = calloc((size_t)messages, sizeof *latencies_us);
    pthread_t *threads = calloc((size_t)connections, sizeof *threads);
    double began = seconds(CLOCK_MONOTONIC), cpu_began = seconds(CLOCK_PROCESS_CPUTIME_ID);
    for (long i = 0; i < connections; i++) pthread_create(&threads[i], NULL, work, NULL);
    for (long i = 0; i < connections; i++) pthread_join(threads[i], NULL);
    double took = seconds(CLOCK_MONOTONIC) - began, cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu_began;
    qsort(latencies_us, (size_t)measured, sizeof *latencies_us, ascending);
    printf("{\"accepted\": %ld, \"edits\": %ld, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"p50_ms\": %.3f, \"p99_ms\": %.3f}\n",
           (long)accepted, (long)edits, took, cpu, latencies_us[measured / 2] / 1e3, latencies_us[measured * 99 / 100] / 1e3);
    return 0;
}
