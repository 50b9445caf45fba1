/*
 * What the daemon counts beside the totals of the DAEMON_STATS request: requests by kind, errors by
 * kind, how long work takes, and what happened in each of the last seconds. Loop thread only.
 */
#ifndef TKV_DAEMON_METRICS_H
#define TKV_DAEMON_METRICS_H

#include <stddef.h>
#include <stdint.h>

enum {
    TKV_METRICS_KINDS = 256,  /* request types from there on are counted as 0, "unknown" */
    TKV_METRICS_ERRORS = 128, /* error numbers likewise */
    TKV_HISTOGRAM_BUCKETS = 19,
    TKV_HISTORY_SECONDS = 120,
};

/* Upper bounds of the buckets in seconds: 1, 2.5, 5 per decade from 10 us to 10 s. */
extern const double tkv_histogram_bounds[TKV_HISTOGRAM_BUCKETS];

struct tkv_histogram {
    uint64_t n[TKV_HISTOGRAM_BUCKETS + 1]; /* the last: longer than every bound */
    double sum_s;
};

void tkv_histogram_add(struct tkv_histogram *h, double seconds);
uint64_t tkv_histogram_count(const struct tkv_histogram *h);

/* An estimate of the quantile q, linear inside its bucket; 0 if nothing was added. */
double tkv_histogram_quantile(const struct tkv_histogram *h, double q);

/* Totals as they were at the end of a second. */
struct tkv_history_item {
    uint64_t at_ms; /* of the loop */
    uint64_t n_requests;
    uint64_t n_errors;
    uint64_t n_tokens;
    uint64_t n_rows;
    uint64_t memory_used_bytes;
};

struct tkv_metrics {
    uint64_t n_requests[TKV_METRICS_KINDS];
    uint64_t n_errors[TKV_METRICS_ERRORS];
    struct tkv_histogram append_s; /* work of requests that only append */
    struct tkv_histogram attend_s; /* work of those that attend, appending or not */
    struct tkv_histogram round_s;  /* work of ROUND */
    struct tkv_histogram queue_s;  /* between a request's arrival and the start of its work */
    uint64_t n_evicted;            /* (token, layer, KV head) triples */
    uint64_t n_reloads;
    uint64_t n_reloads_failed;
    uint64_t n_scrapes;
    uint64_t n_scrapes_refused;
    struct tkv_history_item history[TKV_HISTORY_SECONDS]; /* a ring */
    uint64_t n_history;                                   /* items ever written */
};

void tkv_metrics_request(struct tkv_metrics *m, uint16_t type);
void tkv_metrics_error(struct tkv_metrics *m, int error);

/* Called once a second. */
void tkv_metrics_remember(struct tkv_metrics *m, const struct tkv_history_item *item);

/* The item of `ago` seconds ago (0: the newest), or NULL if none is that old. */
const struct tkv_history_item *tkv_metrics_history(const struct tkv_metrics *m, size_t ago);

#endif /* TKV_DAEMON_METRICS_H */
