/* What one measurement is asked to do. 0 and NULL: the default of the command. */
#ifndef TKV_BENCH_OPTIONS_H
#define TKV_BENCH_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/types.h"

#define TKV_BENCH_PROGRAM "trikv-bench"

struct tkv_bench_options {
    uint32_t head_dim;
    uint32_t group;
    uint32_t rope_dim; /* attend: of latents */
    uint32_t kv_heads;
    uint32_t layers;
    uint32_t threads;
    uint64_t tokens;
    uint64_t budget;
    uint32_t times;
    const char *work;
    const char *codec;
    enum tkv_dtype input; /* encode: what vectors come as */
    const char *disable;  /* instruction sets not to use; NULL: as $TRIKV_CPU_DISABLE says */
    const char *in;       /* report: the template */
    const char *out;      /* report: what is written */
    double seconds;       /* of measuring, for each thing measured */
    bool resident;        /* stay in one layer, so that it may stay in the caches */
    bool alone;           /* measure no comparison */
    bool json;
};

enum tkv_bench_parsed { TKV_PARSED = 0, TKV_PARSED_HELP, TKV_PARSED_WRONG };

/* Reads options into *o, which has the defaults; argv[0] is the command. What is wrong is said
 * on stderr. "fp16" is a name for the codec f16. */
enum tkv_bench_parsed tkv_bench_parse(struct tkv_bench_options *o, int argc, char **argv);

/* The lines of --help that list the options. */
extern const char tkv_bench_option_help[];

#endif /* TKV_BENCH_OPTIONS_H */
