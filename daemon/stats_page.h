/* The daemon's side of proto/stats_page.h: making the file and writing it. */
#ifndef TKV_DAEMON_STATS_PAGE_H
#define TKV_DAEMON_STATS_PAGE_H

struct tkv_server;
struct trikv_stats_page;

/* Make metrics.page, in the place of one that another daemon left. Readers see it once it is
 * whole. NULL in *page if the configuration names none. Returns NULL or what went wrong. */
const char *tkv_stats_page_open(struct tkv_server *s, struct trikv_stats_page **page);
void tkv_stats_page_write(struct tkv_server *s, struct trikv_stats_page *page);
void tkv_stats_page_close(struct tkv_server *s, struct trikv_stats_page **page);

#endif /* TKV_DAEMON_STATS_PAGE_H */
