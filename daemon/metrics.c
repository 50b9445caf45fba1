/* Counters, histograms and the history of the last seconds. */
#include "daemon/metrics.h"

const double tkv_histogram_bounds[TKV_HISTOGRAM_BUCKETS] = {
    1e-5,   2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2,
    2.5e-2, 5e-2,   0.1,  0.25, 0.5,    1,    2.5,  5,      10,
};

void tkv_histogram_add(struct tkv_histogram *h, double seconds)
{
    size_t i = 0;

    while (i < TKV_HISTOGRAM_BUCKETS && seconds > tkv_histogram_bounds[i])
        i++;
    h->n[i]++;
    h->sum_s += seconds;
}

uint64_t tkv_histogram_count(const struct tkv_histogram *h)
{
    uint64_t n = 0;

    for (size_t i = 0; i <= TKV_HISTOGRAM_BUCKETS; i++)
        n += h->n[i];
    return n;
}

double tkv_histogram_quantile(const struct tkv_histogram *h, double q)
{
    const double rank = q * (double)tkv_histogram_count(h);
    double below = 0;

    for (size_t i = 0; i < TKV_HISTOGRAM_BUCKETS; i++) {
        const double low = i ? tkv_histogram_bounds[i - 1] : 0;
        const double here = (double)h->n[i];

        if (here > 0 && below + here >= rank)
            return low + (tkv_histogram_bounds[i] - low) * (rank - below) / here;
        below += here;
    }
    return h->n[TKV_HISTOGRAM_BUCKETS] ? tkv_histogram_bounds[TKV_HISTOGRAM_BUCKETS - 1] : 0;
}

void tkv_metrics_request(struct tkv_metrics *m, uint16_t type)
{
    m->n_requests[type < TKV_METRICS_KINDS ? type : 0]++;
}

void tkv_metrics_error(struct tkv_metrics *m, int error)
{
    m->n_errors[error > 0 && error < TKV_METRICS_ERRORS ? error : 0]++;
}

void tkv_metrics_remember(struct tkv_metrics *m, const struct tkv_history_item *item)
{
    m->history[m->n_history % TKV_HISTORY_SECONDS] = *item;
    m->n_history++;
}

const struct tkv_history_item *tkv_metrics_history(const struct tkv_metrics *m, size_t ago)
{
    if (ago >= TKV_HISTORY_SECONDS || ago >= m->n_history)
        return NULL;
    return &m->history[(m->n_history - 1 - ago) % TKV_HISTORY_SECONDS];
}
