/* The measurements, each a function from options to a record. */
#ifndef TKV_BENCH_COMMANDS_H
#define TKV_BENCH_COMMANDS_H

#include "bench/options.h"
#include "bench/record.h"
#include "tools/reason.h"

typedef int tkv_bench_run(const struct tkv_bench_options *o, struct tkv_record *r,
                          struct tkv_reason *why);

struct tkv_bench_command {
    const char *name;
    const char *summary;
    tkv_bench_run *run;
    struct tkv_bench_options defaults;
    bool flat; /* JSON has its fields at the top */
};

/* NULL if there is none of that name. */
const struct tkv_bench_command *tkv_bench_find(const char *name);

/* 0, or -1 with a text. */
tkv_bench_run tkv_bench_attend, tkv_bench_encode, tkv_bench_round, tkv_bench_ipc, tkv_bench_session,
    tkv_bench_appliance, tkv_bench_memory, tkv_bench_model, tkv_bench_work, tkv_bench_score,
    tkv_bench_accuracy, tkv_bench_snapshot;

/* Fills the template o->in and writes o->out. */
int tkv_bench_report(const struct tkv_bench_options *o, struct tkv_reason *why);

#endif /* TKV_BENCH_COMMANDS_H */
