/* `trikvctl top`: the view, again and again. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "client/trikv.h"
#include "proto/errors.h"
#include "tools/ctl_commands.h"
#include "tools/ctl_view.h"

static const char default_page[] = "/run/trikvd/stats";

enum { INTERVAL_MS = 1000 };

struct top {
    const struct ctl_context *x;
    const char *page; /* NULL: ask */
    struct trikv_client *client;
    struct trikv_stats_page view[2];
    unsigned n_views;
};

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static int ask(struct top *t, struct trikv_stats_page *out)
{
    int e = TRIKV_OK;

    if (!t->client)
        e = trikv_connect(&t->client, t->x->options);
    if (!e)
        e = ctl_view_ask(t->client, out);
    if (e)
        fprintf(stderr, "trikvctl: %s: %s\n", trikv_error_text(e), trikv_last_error(t->client));
    return e;
}

/* One more view; the one before it stays, for rates. */
static int look(struct top *t)
{
    struct trikv_stats_page *const out = &t->view[t->n_views % 2];
    int e;

    if (!t->page) {
        e = ask(t, out);
    } else {
        e = ctl_view_read_page(t->page, out);
        if (e)
            fprintf(stderr, "trikvctl: %s: %s\n", t->page,
                    e == EPROTO ? "not a stats page of this version" : strerror(e));
        e = e ? TRIKV_E_SYSTEM : TRIKV_OK;
    }
    t->n_views += !e;
    return e;
}

static void draw(const struct top *t, FILE *out, bool live)
{
    const char *no_colour = getenv("NO_COLOR");
    struct ctl_screen screen = {.columns = 120, .rows = 1 << 16, .has_page = t->page != NULL};
    struct winsize size;

    screen.now_ms = now_ms();
    screen.colours = isatty(STDOUT_FILENO) && !(no_colour && *no_colour);
    if (live && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col && size.ws_row > 1) {
        screen.columns = size.ws_col;
        screen.rows = size.ws_row - 1u;
    }
    ctl_view_draw(out, &t->view[(t->n_views - 1) % 2],
                  t->n_views > 1 ? &t->view[t->n_views % 2] : NULL, &screen);
}

/* All of a frame at once, so that it does not flicker. */
static void draw_frame(const struct top *t)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    if (f) {
        fputs("\033[H\033[J", f);
        draw(t, f, true);
        fclose(f);
        fwrite(text, 1, n, stdout);
        fflush(stdout);
    }
    free(text);
}

/* False if it is time to leave: q, the end of input, or a signal. */
static bool wait_key(int signal_fd)
{
    struct pollfd p[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                         {.fd = signal_fd, .events = POLLIN}};
    char key = 0;

    if (poll(p, 2, INTERVAL_MS) <= 0)
        return true;
    return !p[1].revents && read(STDIN_FILENO, &key, 1) == 1 && key != 'q';
}

static int catch_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

static int run_live(struct top *t)
{
    const int signal_fd = catch_signals();
    struct termios old, raw;
    int e = TRIKV_OK;

    tcgetattr(STDIN_FILENO, &old);
    raw = old;
    raw.c_lflag &= (tcflag_t) ~(ICANON | ECHO);
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    fputs("\033[?1049h\033[?25l", stdout); /* the other screen, no cursor */
    do {
        draw_frame(t);
    } while (wait_key(signal_fd) && !(e = look(t)));
    fputs("\033[?25h\033[?1049l", stdout);
    tcsetattr(STDIN_FILENO, TCSANOW, &old);
    if (signal_fd >= 0)
        close(signal_fd);
    return e;
}

static const char *find_page(const struct ctl_context *x)
{
    const char *given = x->page ? x->page : getenv("TRIKV_STATS_PAGE");

    if (given && *given)
        return given;
    /* A socket that was named belongs to another daemon than the system's. */
    return !x->socket && access(default_page, R_OK) == 0 ? default_page : NULL;
}

int ctl_top(const struct ctl_context *x)
{
    struct top *t = calloc(1, sizeof(*t));
    int e;

    if (!t)
        return TRIKV_E_NO_MEMORY;
    t->x = x;
    t->page = find_page(x);
    e = look(t);
    if (!e && isatty(STDOUT_FILENO) && isatty(STDIN_FILENO) && !x->once)
        e = run_live(t);
    else if (!e)
        draw(t, stdout, false);
    trikv_disconnect(&t->client);
    free(t);
    return e;
}
