/* Has a program that asks libresolv ask 127.0.0.1 at RESOLVER_PORT instead: opendmarc knows no resolver but /etc/resolv.conf's. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <resolv.h>
#include <stdlib.h>
#include <string.h>

static int redirect(res_state state, const char *symbol) {
    int (*original)(res_state) = (int (*)(res_state))dlsym(RTLD_NEXT, symbol);
    int result = original(state);
    const char *port = getenv("RESOLVER_PORT");
    if (!port) return result;
    struct sockaddr_in *server = &state->nsaddr_list[0];
    memset(server, 0, sizeof *server);
    server->sin_family = AF_INET;
    server->sin_port = htons((uint16_t)atoi(port));
    server->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    state->nscount = 1;
    return result;
}

#undef res_ninit
int res_ninit(res_state state) { return redirect(state, "__res_ninit"); }
int __res_ninit(res_state state) { return redirect(state, "__res_ninit"); }
