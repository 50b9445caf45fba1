/* The C++ wrapper on a real daemon: every call once, errors as exceptions, nothing left open. */
#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include <trikv.hpp>

namespace
{

constexpr std::uint32_t n_tokens = 100, dim = 32;
int n_passed, n_failed;

void check(bool ok, const char *what)
{
    (ok ? n_passed : n_failed)++;
    if (!ok)
        std::printf("FAIL: %s\n", what);
}

struct tensors {
    std::vector<float> k, v, q, out;
    tensors() : k(n_tokens * dim), v(n_tokens * dim), q(n_tokens * dim), out(n_tokens * dim)
    {
        for (std::size_t i = 0; i < k.size(); i++) {
            k[i] = std::sin(static_cast<float>(i));
            v[i] = std::cos(static_cast<float>(3 * i));
            q[i] = std::sin(static_cast<float>(7 * i));
        }
    }
    trikv_step step(std::uint32_t at, std::uint32_t n)
    {
        trikv_step t{};
        t.size = sizeof(t);
        t.n_tokens = n;
        t.k = &k[at * dim];
        t.v = &v[at * dim];
        t.q = &q[at * dim];
        t.out = &out[at * dim];
        return t;
    }
};

trikv::session open(trikv::client &client, const char *codec)
{
    const float theta = 10000;
    trikv_layer layer{};
    trikv_rope rope{};
    trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    layer.n_q_heads = layer.n_kv_heads = 1;
    layer.head_dim_k = layer.head_dim_v = rope.rotary_dim = dim;
    rope.theta = theta;
    rope.layout = "half";
    rope.scaling = "none";
    o.n_layers = 1;
    o.layers = &layer;
    o.rope = &rope;
    o.codec_k = o.codec_v = codec;
    o.method = "none";
    return client.open(o);
}

void check_steps(trikv::client &client)
{
    trikv::session a = open(client, "tq4"), b = open(client, "tq4");
    tensors x, y;

    a.append_attend(x.step(0, n_tokens));
    b.append(y.step(0, 60));
    b.append(y.step(0, 20));
    b.truncate(20);
    b.append_attend(y.step(60, 40));
    check(std::memcmp(&x.out[60 * dim], &y.out[60 * dim], 40 * dim * 4) == 0, "truncate");
    trikv::session c = a.fork(), d = client.fork(a.id());
    check(c.id() != a.id() && c.stats().n_seen == n_tokens, "fork");
    a.attend(x.step(90, 10));
    const std::vector<float> want = x.out;
    client.map(d.id()).attend(x.step(90, 10));
    check(x.out == want, "map");
    a.round();
    check(a.geometry(0).head_dim_v == dim, "geometry");
    check(client.map(a.id()).n_seen(0) == n_tokens, "n_seen");
    trikv::session moved = std::move(a);
    check(moved.get() && !a.get(), "move");
}

void check_ring(trikv::client &client)
{
    trikv::session a = open(client, "tq4"), b = open(client, "tq4");
    tensors x, y;

    a.append_attend(x.step(0, n_tokens));
    client.open_ring();
    check(client.ring_tensors() == nullptr, "no tensors of the caller");
    const trikv_step steps[] = {y.step(0, 60), y.step(60, 40)};
    b.submit(TRIKV_STEP_APPEND_ATTEND, steps, 2);
    client.wait();
    check(b.stats().n_seen == n_tokens, "ring");
    check(std::fabs(x.out[n_tokens * dim - 1] - y.out[n_tokens * dim - 1]) < 1e-4f,
          "ring's output");
    client.close_ring();
}

void check_sharing(trikv::client &client)
{
    trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    struct trikv_prefix prefix {
    };
    std::vector<std::uint32_t> ids(n_tokens);
    trikv_layer layer{};
    tensors x;

    for (std::uint32_t i = 0; i < n_tokens; i++)
        ids[i] = 3 * i;
    layer.n_q_heads = layer.n_kv_heads = 1;
    layer.head_dim_k = layer.head_dim_v = dim;
    prefix.size = sizeof(prefix);
    o.n_layers = 1;
    o.layers = &layer;
    o.method = "none";
    o.fingerprint = "cpp";
    o.prefix = &prefix;
    trikv::session first = client.open(o);
    trikv_step step = x.step(0, n_tokens);
    step.token_ids = ids.data();
    first.append(step);
    check(first.prefix().outcome == TRIKV_PREFIX_NOT_ASKED, "no ids, nothing found");
    check(first.n_layers() == 1 && first.reserved_bytes() > 0, "what a session is");
    check(first.keep() == n_tokens, "keep");
    prefix.token_ids = ids.data();
    prefix.n_token_ids = n_tokens;
    check(client.open(o).prefix().n_tokens == n_tokens, "prefix");
    first.round();
    const trikv::handle blocks = first.take_handle();
    check(blocks->fd >= 0 && blocks->table_bytes >= 64, "handle");
    const trikv::map seen = client.map(first.id());
    check(seen.n_layers() == 1 && seen.geometry(0).head_dim_k == dim, "geometry of a map");
    first.snapshot("cpp");
    check(client.restore("cpp").stats().n_seen == n_tokens, "restore");
    client.delete_snapshot("cpp");
}

void check_read(trikv::client &client)
{
    trikv::session s = open(client, "f16");
    tensors x;
    std::vector<float> k(n_tokens * dim);
    struct trikv_read what {
    };

    s.append(x.step(0, n_tokens));
    what.size = sizeof(what);
    what.kv_head = -1;
    what.n_tokens = n_tokens;
    what.k = k.data();
    check(s.read(what).exact, "read is exact");
    check(std::fabs(k[500] - x.k[500]) < 1e-3f, "read");
}

void check_calibration(trikv::client &client)
{
    trikv::session s = open(client, "tq4");
    tensors x;
    trikv_queries queries{};
    trikv_calibration_options o{};

    queries.size = sizeof(queries);
    queries.n_tokens = n_tokens;
    queries.q = x.q.data();
    queries.before_rope = 1;
    s.observe(queries);
    o.size = sizeof(o);
    o.name = "cpp";
    check(s.calibrate(o).find("name: \"cpp\"") != std::string::npos, "calibrate");
}

void check_errors(trikv::client &client)
{
    try {
        open(client, "tq4").gate();
        check(false, "no gate throws");
    } catch (const trikv::error &e) {
        check(e.code() == TRIKV_E_STATE, "no gate");
    }
    try {
        open(client, "tq9");
        check(false, "a wrong codec throws");
    } catch (const trikv::error &e) {
        check(e.code() == TRIKV_E_ARGUMENT && std::strstr(e.what(), "tq9"), "text of an error");
    }
    try {
        trikv_options o{};
        o.size = sizeof(o);
        o.socket = "/nonexistent";
        trikv::client nobody(o);
        check(false, "no daemon throws");
    } catch (const trikv::error &e) {
        check(e.code() == TRIKV_E_CONNECT, "no daemon");
    }
}

} // namespace

int main()
{
    trikv::client client;

    check(client.info().protocol == 1, "info");
    check_steps(client);
    check_ring(client);
    check_sharing(client);
    check_read(client);
    check_calibration(client);
    for (int i = 0; i < 100; i++) /* more than may be open at a time */
        open(client, "tq4");
    check_errors(client);
    std::printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed != 0;
}
