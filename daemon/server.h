/*
 * The daemon's state and what its parts call of each other. Everything here belongs to the loop
 * thread; a worker sees only the job that it runs: the step or the configuration, the session, the
 * kernel table, the budget (atomic) and the executor.
 */
#ifndef TKV_DAEMON_SERVER_H
#define TKV_DAEMON_SERVER_H

#include "core/kernels.h" /* wants to come before uv.h */

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/autosave.h"
#include "daemon/config.h"
#include "daemon/conn.h"
#include "daemon/foreign.h"
#include "daemon/handover.h"
#include "daemon/http.h"
#include "daemon/keep.h"
#include "daemon/log.h"
#include "daemon/message.h"
#include "daemon/metrics.h"
#include "daemon/notify.h"
#include "daemon/pool.h"
#include "daemon/profile.h"
#include "daemon/pulse.h"
#include "daemon/quota.h"
#include "daemon/ring.h"
#include "daemon/sessions.h"
#include "daemon/snapshots.h"
#include "daemon/staging.h"
#include "store/budget.h"

struct tkv_open;
struct tkv_snapshot_job;
struct tkv_options;
struct tkv_server;

/* The one request that a connection may have in flight. */
struct tkv_call {
    struct tkv_job job;
    struct tkv_client *client;
    struct tkv_call *next_waiting; /* behind a session's running job */
    struct tkv_session_entry *entry;
    bool running; /* a job or a destruction will report back */
    bool waiting;
    uint64_t session_id;
    int (*work)(struct tkv_session *s, const struct tkv_step *step, const struct tkv_exec *exec,
                struct tkv_report *why);
    struct tkv_step step;
    const uint32_t *token_ids;     /* of the step, or NULL */
    struct tkv_prefix_match match; /* OPEN */
    uint64_t out_bytes;            /* of O, its padding and LSE; of what READ answers */
    bool out_in_staging;
    struct tkv_open *open;
    struct tkv_snapshot_job *snapshot; /* SNAPSHOT, RESTORE and their like */
    bool before_rope;                  /* OBSERVE */
    size_t yaml_bytes;                 /* CALIBRATE */
    struct tkv_read read;
    uint32_t n_rounds_before;
    uint64_t submitted_ns; /* to the pool; then when a worker began and ended */
    uint64_t started_ns;
    uint64_t ended_ns;
    struct tkv_report why; /* error 0: fine */
};

struct tkv_client {
    struct tkv_conn conn;
    struct tkv_server *server;
    struct tkv_quota *quota;         /* of its user */
    struct tkv_client *next, **link; /* of server->clients */
    uint64_t id;                     /* for logs */
    bool said_hello;
    bool socket_closed;
    uint32_t n_sessions;
    struct tkv_staging staging;
    struct tkv_ring *ring;      /* or NULL */
    struct tkv_buffer output;   /* of the reply being written */
    struct tkv_scratch scratch; /* of the steps that come over the socket */
    struct tkv_call call;
};

struct tkv_counters {
    uint64_t n_requests;
    uint64_t n_errors;
    uint64_t n_bad_frames;
    uint64_t n_tokens_appended;
    uint64_t n_rows_attended;
    uint64_t n_rounds;
};

struct tkv_server {
    uv_loop_t loop;
    bool has_loop;
    struct tkv_log log;
    struct tkv_config config;
    const struct tkv_options *options; /* the command line, for reloads */
    struct tkv_conn_limits limits;     /* from config, for connections */
    struct tkv_profiles profiles;
    struct tkv_budget budget;
    struct tkv_kernels kernels;
    char cpu[64];
    uint32_t n_threads;
    struct tkv_pool *pool;
    uv_async_t jobs_done;
    uv_async_t rings_news;
    struct tkv_rings rings;
    struct tkv_notify notify;

    int listen_fd;
    bool owns_socket; /* we made the file: we remove it */
    uv_poll_t listen_poll;
    uv_timer_t accept_pause;
    uv_timer_t drain_deadline;
    uv_signal_t on_term, on_int, on_hup;
    bool has_listener; /* listen_poll is open */
    bool draining;
    bool abandoned; /* second signal: jobs may still be running */

    struct tkv_client *clients;
    uint32_t n_clients;
    uint64_t n_clients_ever;
    uint64_t log_second; /* n_log_lines of this second about connections */
    uint32_t n_log_lines;
    struct tkv_sessions sessions;
    struct tkv_prefixes prefixes;
    struct tkv_snapshots snapshots;
    struct tkv_autosave autosave;
    struct tkv_quota *users;
    struct tkv_keep keep;
    struct tkv_handover handover;
    uv_timer_t grace; /* for clients to come back after a restart */

    struct tkv_message_arena arena;
    void *arena_memory;
    struct tkv_counters counters;
    struct tkv_metrics metrics;
    struct tkv_foreign *foreign;
    struct tkv_http http;
    struct tkv_pulse pulse;
    uint64_t boot_id;
    uint64_t started_ms;
};

/*
 * Start everything: 0, or an exit code of sysexits.h with the reason logged. The struct is
 * zeroed first; after a failure tkv_server_deinit is still right. The config is copied.
 */
int tkv_server_init(struct tkv_server *s, const struct tkv_config *config,
                    const struct tkv_options *options);

/* Serve until told to stop. Returns the exit code. */
int tkv_server_run(struct tkv_server *s);
void tkv_server_deinit(struct tkv_server *s);

/* Re-read configuration and profiles; on any error the old ones stay. */
void tkv_server_reload(struct tkv_server *s);

/* Begin to stop: nothing new is accepted, what is in flight is finished. */
void tkv_server_drain(struct tkv_server *s);

/* Called when something ended that a drain may have waited for. */
void tkv_server_check_drained(struct tkv_server *s);

/* The listening socket (listen.c): open it, accept from it, close it. */
int tkv_listen_open(struct tkv_server *s, const struct tkv_notify_sockets *passed);
void tkv_listen_start(struct tkv_server *s);
void tkv_listen_stop(struct tkv_server *s); /* accept no more */
void tkv_listen_close(struct tkv_server *s);

/* Bind fd to path and listen, in the place of a socket that nobody listens on. NULL, or what went
 * wrong; *made_file says that there is a file to remove in the end. */
const char *tkv_listen_unix(int fd, const char *path, uint32_t mode, bool *made_file);

/* Clients (clients.c). Takes fd, closes it on failure. */
void tkv_client_accept(struct tkv_server *s, int fd);

/* Frees the client if its socket is closed and no job of it runs. */
void tkv_client_release(struct tkv_client *client);

#endif /* TKV_DAEMON_SERVER_H */
