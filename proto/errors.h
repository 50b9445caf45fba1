/*
 * Every error that one side tells the other: number, name, text. Numbers are wire
 * values, grouped with gaps, and never reused. 0 is success.
 *
 *    1-19   the request        20-39  the session's state     40-59  limits
 *   60-79   the world          80-99  the client library alone (never on the wire)
 */
#ifndef TRIKV_PROTO_ERRORS_H
#define TRIKV_PROTO_ERRORS_H

#define TRIKV_ERRORS(X)                                           \
    X(1, PROTOCOL, "frame or message is not of the protocol")     \
    X(2, VERSION, "protocol version not supported")               \
    X(3, CHECKSUM, "checksum of the frame does not match")        \
    X(4, UNKNOWN_REQUEST, "request type unknown")                 \
    X(5, ARGUMENT, "argument missing or out of range")            \
    X(6, SIZE, "tensor size does not fit the geometry")           \
    X(7, VALUE, "tensor holds a value that cannot be stored")     \
    X(8, POSITION, "positions are not strictly increasing")       \
    X(20, NO_SESSION, "no such session")                          \
    X(21, NO_PROFILE, "no such profile")                          \
    X(22, GEOMETRY, "profile does not fit the session")           \
    X(23, STATE, "session is not in a state for this request")    \
    X(24, DENIED, "not allowed for this user")                    \
    X(25, EXISTS, "already there")                                \
    X(26, EVICTED, "the session had to go for memory")            \
    X(40, TOO_LARGE, "larger than the limit")                     \
    X(41, MEMORY_CAP, "memory cap reached")                       \
    X(42, TOO_MANY, "too many sessions, connections or requests") \
    X(43, QUOTA, "the user's or session's share is used up")      \
    X(60, NO_MEMORY, "out of memory")                             \
    X(61, SYSTEM, "system call failed")                           \
    X(62, DRAINING, "daemon is shutting down")                    \
    X(63, INTERNAL, "internal error")                             \
    X(80, CONNECT, "cannot connect to the daemon")                \
    X(81, DISCONNECTED, "connection lost")                        \
    X(82, DEADLINE, "deadline passed")                            \
    X(83, STALE, "the mapping is not valid any more")

#ifdef TRIKV_H /* the installed header spells the enum out: it must agree */
#define X(number, name, text) \
    _Static_assert((int)TRIKV_E_##name == number, "client/trikv.h differs: " #name);
TRIKV_ERRORS(X)
#undef X
#else
enum trikv_error {
    TRIKV_OK = 0,
#define X(number, name, text) TRIKV_E_##name = number,
    TRIKV_ERRORS(X)
#undef X
};

#endif

/* The text of an error number; a fixed text for an unknown one. Never NULL. */
const char *tkv_error_text(int error);

/* Its name without prefix, as in "MEMORY_CAP"; "UNKNOWN" for an unknown one. */
const char *tkv_error_name(int error);

#endif /* TRIKV_PROTO_ERRORS_H */
