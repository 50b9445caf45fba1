/* A profile of what a session has observed. Writing it somewhere is the caller's. */
#include "client/client.h"

#include <stdlib.h>

#include "proto/trikv.pb-c.h"

static char *text_of(const char *s)
{
    return (char *)(uintptr_t)s;
}

static int take_profile(struct trikv_client *c, struct tkv_request *r,
                        struct trikv_calibration *calibration)
{
    const Trikv__CalibrateReply *m = (const Trikv__CalibrateReply *)r->reply;

    if (m->yaml_bytes != r->payload_bytes) {
        tkv_stream_close(&c->stream);
        return tkv_fail(&c->report, TRIKV_E_PROTOCOL,
                        "reply of the daemon: a profile of %llu bytes, got %zu",
                        (unsigned long long)m->yaml_bytes, r->payload_bytes);
    }
    *calibration = (struct trikv_calibration){r->payload, r->payload_bytes, m->n_tokens};
    r->payload = NULL;
    return 0;
}

int trikv_calibrate(struct trikv_session *session, const struct trikv_calibration_options *options,
                    struct trikv_calibration *calibration)
{
    struct trikv_client *const c = session->client;
    struct trikv_calibration_options o = {0};
    struct tkv_request r = TKV_REQUEST_INIT;
    Trikv__CalibrateRequest m = TRIKV__CALIBRATE_REQUEST__INIT;
    int e = tkv_client_read_struct(c, &o, options, sizeof(o), "trikv_calibration_options");

    *calibration = (struct trikv_calibration){0};
    if (e)
        return e;
    if (!o.name)
        return tkv_fail(&c->report, TRIKV_E_ARGUMENT, "name is NULL");
    m.session = session->id;
    m.name = text_of(o.name);
    m.architecture = text_of(o.architecture);
    m.fingerprint = text_of(o.fingerprint);
    r.type = TRIKV_CALIBRATE;
    r.message = &m.base;
    r.reply_type = &trikv__calibrate_reply__descriptor;
    r.takes_payload = 1;
    e = tkv_request_run(c, &r);
    if (!e)
        e = take_profile(c, &r, calibration);
    tkv_request_deinit(&r);
    return e;
}

void trikv_calibration_release(struct trikv_calibration *calibration)
{
    free(calibration->yaml);
    *calibration = (struct trikv_calibration){0};
}
