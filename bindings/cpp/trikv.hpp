/*
 * libtrikv for C++17: what is opened is closed, and errors are exceptions with the daemon's text.
 * Header only, nothing but what trikv.h has; its structs, options and steps are used as they are.
 *
 *     trikv::client client;
 *     trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
 *     ...
 *     trikv::session session = client.open(o);
 *     session.append_attend(step);
 *
 * A client must outlive its sessions and maps, and belongs with them to one thread at a time.
 */
#ifndef TRIKV_HPP
#define TRIKV_HPP

#include <trikv.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace trikv
{

class error : public std::runtime_error
{
  public:
    error(int code, const std::string &text)
        : std::runtime_error(std::string(trikv_error_text(code)) + ": " + text), code_(code)
    {
    }
    int code() const noexcept
    {
        return code_;
    }

  private:
    int code_;
};

namespace detail
{

inline void check(trikv_client *client, int code)
{
    if (code)
        throw error(code, trikv_last_error(client));
}

/* An option struct with its size filled in, everything else zero. */
template <typename T> T sized()
{
    T t{};
    t.size = sizeof(T);
    return t;
}

struct end_client {
    void operator()(trikv_client *c) const noexcept
    {
        trikv_disconnect(&c);
    }
};
struct end_session {
    void operator()(trikv_session *s) const noexcept
    {
        trikv_close(&s);
    }
};
struct end_handle {
    void operator()(struct trikv_handle *h) const noexcept
    {
        trikv_handle_release(h);
        delete h;
    }
};
struct end_map {
    void operator()(struct trikv_map *m) const noexcept
    {
        trikv_unmap(&m);
    }
};

} // namespace detail

/* The compressed blocks: a descriptor and their table, until it ends. */
using handle = std::unique_ptr<struct trikv_handle, detail::end_handle>;

/* A session as it was when it was mapped. */
class map
{
  public:
    map(trikv_client *client, struct trikv_map *m) noexcept : client_(client), map_(m)
    {
    }
    std::uint32_t n_layers() const noexcept
    {
        return trikv_map_n_layers(map_.get());
    }
    trikv_geometry geometry(std::uint32_t layer) const
    {
        trikv_geometry g{};
        detail::check(client_, trikv_map_geometry(map_.get(), layer, &g));
        return g;
    }
    std::uint64_t n_seen(std::uint32_t layer) const noexcept
    {
        return trikv_map_n_seen(map_.get(), layer);
    }
    void attend(const trikv_step &step)
    {
        detail::check(client_, trikv_attend_local(map_.get(), &step));
    }
    struct trikv_map *get() const noexcept
    {
        return map_.get();
    }

  private:
    trikv_client *client_;
    std::unique_ptr<struct trikv_map, detail::end_map> map_;
};

class session
{
  public:
    session(trikv_client *client, trikv_session *s) noexcept : client_(client), session_(s)
    {
    }
    std::uint64_t id() const noexcept
    {
        return trikv_session_id(get());
    }
    std::uint64_t reserved_bytes() const noexcept
    {
        return trikv_session_reserved_bytes(get());
    }
    std::uint32_t n_layers() const noexcept
    {
        return trikv_session_n_layers(get());
    }
    trikv_geometry geometry(std::uint32_t layer) const
    {
        trikv_geometry g{};
        detail::check(client_, trikv_session_geometry(get(), layer, &g));
        return g;
    }
    void append(const trikv_step &step)
    {
        detail::check(client_, trikv_append(get(), &step));
    }
    void attend(const trikv_step &step)
    {
        detail::check(client_, trikv_attend(get(), &step));
    }
    void append_attend(const trikv_step &step)
    {
        detail::check(client_, trikv_append_attend(get(), &step));
    }
    /* Several steps at once; client::wait is their end. */
    void submit(trikv_step_kind kind, const trikv_step *steps, std::uint32_t n_steps)
    {
        detail::check(client_, trikv_ring_submit(get(), kind, steps, n_steps));
    }
    trikv_read_result read(const struct trikv_read &what)
    {
        trikv_read_result result{};
        detail::check(client_, ::trikv_read(get(), &what, &result));
        return result;
    }
    void round()
    {
        detail::check(client_, trikv_round(get()));
    }
    void truncate(std::uint64_t n_tokens)
    {
        detail::check(client_, trikv_truncate(get(), n_tokens));
    }
    /* After client::reconnect. */
    trikv_progress reattach()
    {
        trikv_progress progress = detail::sized<trikv_progress>();
        detail::check(client_, trikv_reattach(get(), &progress));
        return progress;
    }
    session fork(const trikv_fork_options &options = detail::sized<trikv_fork_options>())
    {
        trikv_session *child = nullptr;
        detail::check(client_, trikv_fork(get(), &options, &child));
        return {client_, child};
    }
    /* What was found of the prefix it was opened with. */
    trikv_prefix_result prefix() const noexcept
    {
        trikv_prefix_result result{};
        trikv_session_prefix(get(), &result);
        return result;
    }
    /* Store it for others to begin with: how many tokens. */
    std::uint32_t keep()
    {
        std::uint32_t n_tokens = 0;
        detail::check(client_, trikv_keep(get(), &n_tokens));
        return n_tokens;
    }
    trikv::handle take_handle()
    {
        auto fresh = std::make_unique<struct trikv_handle>();
        detail::check(client_, ::trikv_handle(get(), fresh.get()));
        return trikv::handle(fresh.release());
    }
    std::uint64_t snapshot(const char *name)
    {
        std::uint64_t file_bytes = 0;
        detail::check(client_, trikv_snapshot(get(), name, &file_bytes));
        return file_bytes;
    }
    struct trikv_stats stats()
    {
        struct trikv_stats s {
        };
        detail::check(client_, ::trikv_stats(get(), &s));
        return s;
    }
    /* What a round would drop, of each layer. */
    std::vector<struct trikv_gate> gate()
    {
        std::vector<struct trikv_gate> layers(n_layers());
        detail::check(client_, ::trikv_gate(get(), layers.data()));
        return layers;
    }
    void observe(const trikv_queries &queries)
    {
        detail::check(client_, trikv_observe(get(), &queries));
    }
    std::string calibrate(const trikv_calibration_options &options)
    {
        struct trikv_calibration c {
        };
        detail::check(client_, trikv_calibrate(get(), &options, &c));
        const std::unique_ptr<struct trikv_calibration, decltype(&trikv_calibration_release)> owner(
            &c, trikv_calibration_release);
        return std::string(c.yaml, c.yaml_bytes);
    }
    trikv_session *get() const noexcept
    {
        return session_.get();
    }

  private:
    trikv_client *client_;
    std::unique_ptr<trikv_session, detail::end_session> session_;
};

class client
{
  public:
    explicit client(const trikv_options &options = detail::sized<trikv_options>())
    {
        trikv_client *c = nullptr;
        const int code = trikv_connect(&c, &options);
        client_.reset(c);
        detail::check(c, code);
    }
    const struct trikv_info &info() const noexcept
    {
        return *trikv_info(get());
    }
    void reconnect()
    {
        detail::check(get(), trikv_reconnect(get()));
    }
    session open(const trikv_session_options &options)
    {
        trikv_session *s = nullptr;
        detail::check(get(), trikv_open(get(), &options, &s));
        return {get(), s};
    }
    session fork(std::uint64_t parent,
                 const trikv_fork_options &options = detail::sized<trikv_fork_options>())
    {
        trikv_session *s = nullptr;
        detail::check(get(), trikv_fork_id(get(), parent, &options, &s));
        return {get(), s};
    }
    void open_ring(const trikv_ring_options &options = detail::sized<trikv_ring_options>())
    {
        detail::check(get(), trikv_ring_open(get(), &options));
    }
    void close_ring()
    {
        detail::check(get(), trikv_ring_close(get()));
    }
    void *ring_tensors() const noexcept
    {
        return trikv_ring_tensors(get());
    }
    void wait()
    {
        detail::check(get(), trikv_ring_wait(get()));
    }
    session restore(const char *name)
    {
        trikv_session *s = nullptr;
        detail::check(get(), trikv_restore(get(), name, &s));
        return {get(), s};
    }
    void delete_snapshot(const char *name)
    {
        detail::check(get(), trikv_snapshot_delete(get(), name));
    }
    trikv::map map(std::uint64_t session_id)
    {
        struct trikv_map *m = nullptr;
        detail::check(get(), trikv_map(get(), session_id, &m));
        return {get(), m};
    }
    trikv_client *get() const noexcept
    {
        return client_.get();
    }

  private:
    std::unique_ptr<trikv_client, detail::end_client> client_;
};

} // namespace trikv

#endif /* TRIKV_HPP */
