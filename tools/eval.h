/* The commands of trikv-eval. */
#ifndef TKV_TOOLS_EVAL_H
#define TKV_TOOLS_EVAL_H

#define TKV_EVAL_PROGRAM "trikv-eval"

/* argv[0] is the command's name. The exit status; what is to be said has been said. */
int tkv_eval_kv(int argc, char **argv);
int tkv_eval_frontier(int argc, char **argv);

/* What --help says of the command. */
extern const char tkv_eval_kv_help[];
extern const char tkv_eval_frontier_help[];

#endif /* TKV_TOOLS_EVAL_H */
