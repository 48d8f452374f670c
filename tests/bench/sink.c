/*
 * Where messages end: takes everything and forgets it, and answers as Postfix would, CHUNKING (RFC 3030) included, which Postfix' own
 * smtp-sink does not offer. One thread, one read and one write for all that has come at once.
 *
 *     sink PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE 4096
#define READ (256 * 1024)

enum state { COMMAND, CONTENT, CHUNK };

struct peer {
    int fd;
    enum state state;
    int is_last;        /* of the chunk */
    size_t left;        /* of the chunk */
    int matched;        /* of CRLF.CRLF, at the end of what was read */
    size_t length;      /* of the line that is not whole yet */
    char line[LINE];
};

static char answers[READ];
static size_t answered;
static unsigned long messages;

static void say(const char *text)
{
    size_t size = strlen(text);
    if (answered + size < sizeof answers) {
        memcpy(answers + answered, text, size);
        answered += size;
    }
}

static void queued(void)
{
    char text[64];
    snprintf(text, sizeof text, "250 2.0.0 Ok: queued as %010lX\r\n", ++messages);
    say(text);
}

/* 0 where the peer says good-bye */
static int obey(struct peer *peer)
{
    char *line = peer->line;
    line[peer->length] = 0;
    if (!strncasecmp(line, "EHLO", 4))
        say("250-sink.test\r\n250-PIPELINING\r\n250-SIZE 104857600\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 CHUNKING\r\n");
    else if (!strncasecmp(line, "MAIL", 4))
        say("250 2.1.0 Ok\r\n");
    else if (!strncasecmp(line, "RCPT", 4))
        say("250 2.1.5 Ok\r\n");
    else if (!strncasecmp(line, "DATA", 4)) {
        say("354 End data with <CR><LF>.<CR><LF>\r\n");
        peer->state = CONTENT;
        peer->matched = 2;
    } else if (!strncasecmp(line, "BDAT ", 5)) {
        char *end;
        peer->left = strtoul(line + 5, &end, 10);
        peer->is_last = !strncasecmp(end, " LAST", 5);
        peer->state = CHUNK;
    } else if (!strncasecmp(line, "QUIT", 4)) {
        say("221 2.0.0 Bye\r\n");
        return 0;
    } else
        say("250 2.0.0 Ok\r\n");
    return 1;
}

/* How many bytes of the content there are; its end changes the state. */
static size_t read_content(struct peer *peer, const char *data, size_t size)
{
    static const char end[] = "\r\n.\r\n";
    for (size_t at = 0; at < size; at++) {
        if (!peer->matched) {
            const char *next = memchr(data + at, '\r', size - at);
            if (!next)
                return size;
            at = (size_t)(next - data);
            peer->matched = 1;
        } else if (data[at] == end[peer->matched])
            peer->matched++;
        else
            peer->matched = data[at] == '\r';
        if (peer->matched == 5) {
            peer->state = COMMAND;
            queued();
            return at + 1;
        }
    }
    return size;
}

static size_t read_chunk(struct peer *peer, size_t size)
{
    size_t taken = size < peer->left ? size : peer->left;
    peer->left -= taken;
    if (!peer->left) {
        peer->state = COMMAND;
        if (peer->is_last)
            queued();
        else
            say("250 2.0.0 Ok\r\n");
    }
    return taken;
}

static int take(struct peer *peer, const char *data, size_t size)
{
    size_t at = 0;
    while (at < size || (peer->state == CHUNK && !peer->left)) {
        if (peer->state == CONTENT)
            at += read_content(peer, data + at, size - at);
        else if (peer->state == CHUNK)
            at += read_chunk(peer, size - at);
        else {
            const char *end = memchr(data + at, '\n', size - at);
            size_t length = (size_t)((end ? end + 1 : data + size) - (data + at));
            if (peer->length + length >= LINE)
                return 0;
            memcpy(peer->line + peer->length, data + at, length);
            peer->length += length;
            at += length;
            if (!end)
                break;
            if (!obey(peer))
                return 0;
            peer->length = 0;
        }
    }
    return 1;
}

static void flush(int fd)
{
    size_t at = 0;
    while (at < answered) {
        ssize_t sent = send(fd, answers + at, answered - at, MSG_NOSIGNAL);
        if (sent <= 0)
            break;
        at += (size_t)sent;
    }
    answered = 0;
}

static void welcome(int poll, int listener)
{
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    struct peer *peer = fd < 0 ? NULL : calloc(1, sizeof *peer);
    if (!peer)
        return;
    peer->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = peer };
    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
    say("220 sink.test ESMTP\r\n");
    flush(fd);
}

int main(int argc, char **argv)
{
    static char data[READ];
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), poll = epoll_create1(EPOLL_CLOEXEC);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((unsigned short)(argc > 1 ? atoi(argv[1]) : 0)) };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
        perror("sink");
        return 1;
    }
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL }, events[64];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poll, events, 64, -1);
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            if (!peer) {
                welcome(poll, listener);
                continue;
            }
            ssize_t size = recv(peer->fd, data, sizeof data, 0);
            int stays = size > 0 && take(peer, data, (size_t)size);
            flush(peer->fd);
            if (!stays && !(size < 0 && errno == EINTR)) {
                close(peer->fd);
                free(peer);
            }
        }
    }
}
