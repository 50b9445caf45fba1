# One Makefile for the whole tree. `make help` lists what it can do.
#
#   make BUILD=asan check        the same targets with other flags, in other folders
#   make CC=clang WERROR=1       another compiler, warnings are errors
#   make V=1                     show the commands

PREFIX     ?= /usr/local
SYSCONFDIR ?= $(if $(filter /usr /usr/local,$(PREFIX)),/etc,$(PREFIX)/etc)
LIBDIR     ?= $(PREFIX)/lib
DESTDIR    ?=
CC         ?= cc
BUILD      ?= release
CFLAGS     ?= -O2 -g
V          ?= 0
VERSION    := 0.1.0

# CFLAGS belongs to the user; what the code needs is here. -ffp-contract=off keeps
# a multiply and an add two roundings unless a kernel asks for FMA by name.
B       := build$(if $(filter release:cc release:gcc,$(BUILD):$(CC)),,/$(BUILD)-$(notdir $(CC)))
NEEDED  := -std=gnu17 -ffile-prefix-map=$(CURDIR)=. -I. -I$B/gen -MMD -MP -fvisibility=hidden -fPIC -ffp-contract=off \
	-D_GNU_SOURCE -DTRIKV_VERSION='"$(VERSION)"' -DTRIKV_SYSCONFDIR='"$(SYSCONFDIR)"'
WARN    := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes \
	-Wcast-qual -Wpointer-arith -Wvla -Wwrite-strings $(if $(WERROR),-Werror)

FLAGS_release :=
FLAGS_debug   := -O0 -DTRIKV_CHECKS
FLAGS_asan    := -O1 -DTRIKV_CHECKS -fno-omit-frame-pointer -fsanitize=address,undefined \
	-fno-sanitize-recover=all
# gcc warns of every atomic fence, which TSan does not see. Ours order what another process reads,
# and TSan does not see that either.
FLAGS_tsan    := -O1 -DTRIKV_CHECKS -fsanitize=thread -Wno-tsan
FLAGS_fuzz    := -O1 -DTRIKV_CHECKS -fno-omit-frame-pointer \
	-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
FLAGS_coverage := -O0 -DTRIKV_CHECKS -DTRIKV_FEW_CASES --coverage -fprofile-update=atomic
FLAGS_valgrind := -O1 -DTRIKV_CHECKS
FLAGS_msan    := -O1 -DTRIKV_CHECKS -DTRIKV_C_KERNELS -fno-omit-frame-pointer -fsanitize=memory \
	-fsanitize-ignorelist=tests/msan.txt
ifeq ($(origin FLAGS_$(BUILD)),undefined)
$(error BUILD=$(BUILD) is not one of: release debug asan tsan fuzz coverage valgrind msan)
endif
FLAGS := $(CFLAGS) $(FLAGS_$(BUILD))

# A kernel file's name says its instruction set; no other file is built with it.
ISA_x86_64_avx2     := -mavx2 -mfma -mf16c
ISA_x86_64_avxvnni  := $(ISA_x86_64_avx2) -mavxvnni
ISA_x86_64_avx512   := $(ISA_x86_64_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl
ISA_x86_64_vnni     := $(ISA_x86_64_avx512) -mavx512vnni -mavx512vbmi
ISA_aarch64_dotprod := -march=armv8.2-a+dotprod
ARCH := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))
isa   = $(ISA_$(ARCH)_$(lastword $(subst _, ,$(basename $(notdir $1)))))

PKG      ?= pkg-config
pkg       = $(shell $(PKG) --libs $1 2>/dev/null)
LIB_uv    = $(call pkg,libuv)
LIB_zstd  = $(call pkg,libzstd)
LIB_pbc   = $(call pkg,libprotobuf-c)
LIB_yaml  = $(call pkg,yaml-0.1)
LIB_xxh   = $(call pkg,libxxhash)
LIB_zlib  = $(call pkg,zlib)
# A sanitizer brings its own allocator.
LIB_alloc = $(if $(filter release debug,$(BUILD)),$(call pkg,jemalloc))

# clang 14 needs minutes and a gigabyte to instrument vector kernels for its fuzzer; the same
# files are instrumented by gcc in BUILD=asan, where check_kernels puts guard pages around them.
bare_fuzz := $(filter-out core/kernels.c,$(wildcard core/kernels_*.c))
bare_msan := $(filter-out core/kernels_c.c,$(bare_fuzz))
bare_coverage := $(bare_fuzz)
bare = $(if $(filter $(bare_$(BUILD)),$1),$(if $(filter coverage,$(BUILD)),-O2 -fno-profile-arcs \
	-fno-test-coverage,-fno-sanitize=all))

# One line a layer; a layer may include only those above its own line (tests/check_layers).
CORE   := $(wildcard core/*.c)
PROTO  := $(wildcard proto/*.c)
STORE  := $(wildcard store/*.c)
DAEMON := $(filter-out daemon/main.c,$(wildcard daemon/*.c))
CLIENT := $(wildcard client/*.c)
# A file of tools or bench with a hyphen-less twin in PROGRAMS is a main; the rest is shared.
TOOL_MAINS := $(wildcard tools/trikv_*.c tools/trikvctl.c)
TOOLS  := $(filter-out $(TOOL_MAINS),$(wildcard tools/*.c))
CHECKS := $(wildcard tests/check_*.c)
AIDS   := $(filter-out $(CHECKS),$(wildcard tests/*.c))
SOURCES = $(wildcard */*.[ch] tests/fault/*.[ch] tests/fuzz/*.[ch] bindings/cpp/*.hpp tests/cpp/*.cc)

objs  = $(patsubst %.c,$B/obj/%.o,$1)
GEN  := $B/gen/proto/trikv.pb-c
tests := $(patsubst tests/%.c,$B/tests/%,$(CHECKS))
programs := $B/bin/trikvd $(patsubst tools/%.c,$B/bin/%,$(subst _,-,$(TOOL_MAINS)))
libs  := $B/lib/libtrikv.a $B/lib/libtrikv.so.0
say   = $(if $(filter 0,$V),@printf '  %-4s %s\n' $1 $@;)

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all

all: $(programs) $(libs) ## build the daemon, the tools and the library

$(GEN).c: proto/trikv.proto
	@mkdir -p $B/gen
	$(call say,GEN)protoc-c --c_out=$B/gen $<

$(GEN).h: $(GEN).c ;

# Generated code is not ours to warn about.
$B/obj/gen/trikv.pb-c.o: $(GEN).c
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(NEEDED) $(FLAGS) -c -o $@ $<

$(call objs,$(PROTO) $(DAEMON) daemon/main.c $(CLIENT) $(TOOLS) $(TOOL_MAINS) $(CHECKS) $(AIDS)): | $(GEN).h

$B/obj/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(NEEDED) $(WARN) $(FLAGS) $(call isa,$<) $(call bare,$<) -c -o $@ $<

archive = $(call say,AR)mkdir -p $(@D) && rm -f $@ && $(CROSS)ar rcs $@ $^
$B/lib/core.a: $(call objs,$(CORE)) ; $(archive)
$B/lib/proto.a: $(call objs,$(PROTO)) $B/obj/gen/trikv.pb-c.o ; $(archive)
$B/lib/store.a: $(call objs,$(STORE)) ; $(archive)
$B/lib/daemon.a: $(call objs,$(DAEMON)) ; $(archive)
$B/lib/tools.a: $(call objs,$(TOOLS)) ; $(archive)
$B/lib/aids.a: $(call objs,$(AIDS)) ; $(archive)
$B/lib/libtrikv.a: $(call objs,$(CLIENT) $(PROTO) $(CORE)) $B/obj/gen/trikv.pb-c.o ; $(archive)

$B/lib/libtrikv.so.0: $(call objs,$(CLIENT) $(PROTO) $(CORE)) $B/obj/gen/trikv.pb-c.o client/trikv.map
	$(call say,LD)$(CC) $(FLAGS) $(LDFLAGS) -shared -Wl,-soname,libtrikv.so.0 \
		-Wl,--version-script=client/trikv.map -o $@ $(filter %.o,$^) $(LIB_pbc) -lm

link = $(call say,LD)mkdir -p $(@D) && $(CC) $(FLAGS) $(LDFLAGS) -Wl,--as-needed -o $@ $^

$B/bin/trikvd: $B/obj/daemon/main.o $(patsubst %,$B/lib/%.a,daemon store proto core)
	$(link) $(LIB_uv) $(LIB_pbc) $(LIB_yaml) $(LIB_xxh) $(LIB_zstd) $(LIB_alloc) -lm -pthread

# Tools may read profiles, so they link the daemon's YAML reader.
.SECONDEXPANSION:
$(filter-out $B/bin/trikvd,$(programs)): $B/bin/%: $B/obj/tools/$$(subst -,_,$$*).o \
	$(patsubst %,$B/lib/%.a,tools daemon store libtrikv core)
	$(link) $(LIB_uv) $(LIB_pbc) $(LIB_yaml) $(LIB_xxh) $(LIB_zlib) $(LIB_zstd) -lm -pthread

$(tests): $B/tests/%: $B/obj/tests/%.o \
	$(patsubst %,$B/lib/%.a,aids tools daemon libtrikv store proto core)
	$(link) $(LIB_uv) $(LIB_pbc) $(LIB_yaml) $(LIB_xxh) $(LIB_zlib) $(LIB_zstd) $(call pkg,cmocka) -ljansson -lm -pthread

# Programs know their configuration's place: another one means compiling them again.
$B/gen/places: FORCE
	@mkdir -p $(@D)
	@echo '$(SYSCONFDIR) $(PREFIX)' | cmp -s - $@ || echo '$(SYSCONFDIR) $(PREFIX)' >$@
$(call objs,$(shell grep -l TRIKV_SYSCONFDIR */*.c)): $B/gen/places

SCRIPTS := $(wildcard tests/check_*.sh)
# What the instruction set of a kernel can change.
ISA := attention codebook codec codec_format codec_quality codec_types fused gate half kept_set kernels \
	kv_quality ladder latents map_read mixed model portable ranges roundtrip rotation rope select session \
	session_methods triattention vectors
isa_tests := $(ISA:%=$B/tests/check_%)
# What arm64 cannot change: arithmetic on what kernels give, which are held to equal bits; texts; what Linux
# does with descriptors, which the emulator does in its own way.
ARM_FREE := codec_quality config foreign gguf holes kv_quality matrix plan planted policy profile rope_request \
	start tokenizer
arm_tests := $(filter-out $(ARM_FREE:%=$B/tests/check_%),$(tests))
core_tests := $(filter $(addprefix $B/tests/check_,attention% codebook% codec% half% kernels% rope \
	rotation% select% triattention% vectors%),$(tests))
run_tests := TRIKV_BUILD=$B tests/run

.PHONY: FORCE setup test demo build-tests check check-programs check-isa check-asan check-tsan \
	check-crash check-faults check-soak check-overload check-clang check-layers check-stress check-neon check-valgrind check-msan check-initialised coverage check-reached check-fuzz fuzzers check-all check-more lint format install uninstall clean help

setup: ## install the missing Debian packages for all of this, saying which and why
	./setup.sh build test ci

test: ## install what is missing, build, run every test
	./setup.sh build test
	@$(MAKE) $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc)) check

demo: ## install what is missing, build, see it work: a model whose cache lives in trikvd
	./setup.sh build
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@$B/bin/trikv-demo

build-tests: all $(tests)

check: build-tests ## build and run every test
	@$(run_tests) $(tests) $(SCRIPTS)

check-programs: build-tests
	@$(run_tests) $(tests)

check-isa: build-tests ## the numeric tests again, instruction sets taken away newest first
	@TRIKV_CPU_DISABLE=avx512vnni $(run_tests) $(isa_tests)
	@TRIKV_CPU_DISABLE=avx512 $(run_tests) $(isa_tests)
	@TRIKV_CPU_DISABLE=avx512,avxvnni $(run_tests) $(isa_tests)
	@TRIKV_CPU_DISABLE=avx512,avx2,neon $(run_tests) $(isa_tests)

check-asan: ## every test program under AddressSanitizer and UBSan
	@$(MAKE) BUILD=asan check-programs

check-tsan: ## every test program under ThreadSanitizer
	@$(MAKE) BUILD=tsan check-programs

check-stress: build-tests ## sharing for a minute, 10,000 clients killed (docs/reliability.md)
	@TRIKV_STRESS_SECONDS=60 TRIKV_KILL_CYCLES=10000 $(run_tests) $B/tests/check_stress \
		$B/tests/check_kills

SOAK_MINUTES ?= 30
check-soak: build-tests ## a day's work of clients in SOAK_MINUTES (30): nothing drifts
	@TRIKV_SOAK_SECONDS=$$(($(SOAK_MINUTES) * 60)) \
		TRIKV_TEST_TIMEOUT=$$(($(SOAK_MINUTES) * 90 + 300)) $(run_tests) $B/tests/check_soak

OVERLOAD_MINUTES ?= 10
check-overload: build-tests ## clients that want four times the cap, for OVERLOAD_MINUTES (10)
	@TRIKV_OVERLOAD_SECONDS=$$(($(OVERLOAD_MINUTES) * 60)) \
		TRIKV_TEST_TIMEOUT=$$(($(OVERLOAD_MINUTES) * 90 + 300)) $(run_tests) $B/tests/check_overload

CRASHES ?= 300
RECOVERY_MIB ?= 1024
check-crash: build-tests ## kill a daemon CRASHES (300) times under load, see what is lost
	@CRASHES=$(CRASHES) RECOVERY_MIB=$(RECOVERY_MIB) $B/tests/check_restart

check-clang: ## build everything with clang, warnings are errors
	@$(MAKE) CC=clang WERROR=1 build-tests

check-layers: build-tests ## includes and symbols against the layers
	@$(run_tests) tests/check_layers.sh

# A root of arm64 libraries, in the build folder, so that nothing changes on this machine.
ARM   := aarch64-linux-gnu
ARM_B := build/release-$(ARM)-gcc
ARM_ROOT := build/arm64
ARM_RUN := qemu-aarch64-static -L $(abspath $(ARM_ROOT))
check-neon: ## build for arm64, run the test programs under qemu (Cortex-A76; core: A72 too)
	@tests/arm64_root.sh $(ARM_ROOT)
	@$(MAKE) CC=$(ARM)-gcc CROSS=$(ARM)- CFLAGS='-O2 -g --sysroot=$(abspath $(ARM_ROOT))' \
		PKG='env PKG_CONFIG_LIBDIR=$(abspath $(ARM_ROOT))/usr/lib/$(ARM)/pkgconfig pkg-config' \
		build-tests
	@mkdir -p $(ARM_B)/emulated
	@for p in $(notdir $(programs)); do \
		printf '#!/bin/sh\nexec %s %s "$$@"\n' '$(ARM_RUN)' $(abspath $(ARM_B))/bin/$$p \
		>$(ARM_B)/emulated/$$p && chmod +x $(ARM_B)/emulated/$$p; done
	@echo 'as Cortex-A76:'
	@QEMU_CPU=cortex-a76 TRIKV_TEST_TIMEOUT=900 TRIKV_BIN=$(abspath $(ARM_B))/emulated TRIKV_RUNNER='$(ARM_RUN)' \
		tests/run $(arm_tests:$B/%=$(ARM_B)/%)
	@echo 'as Cortex-A72, core only:'
	@QEMU_CPU=cortex-a72 TRIKV_RUNNER='$(ARM_RUN)' tests/run $(core_tests:$B/%=$(ARM_B)/%)

# Faults: a library put before the daemon's own, and what drives it. A sanitizer wants to be first itself.
faults := $(if $(filter release debug coverage,$(BUILD)),$B/fault/faults $B/fault/preload.so)
$B/fault/preload.so: $B/obj/tests/fault/preload.o
	$(link) -shared -ldl
$B/fault/faults: $B/obj/tests/fault/faults.o $B/obj/tests/fault/wide.o \
	$(patsubst %,$B/lib/%.a,aids tools daemon libtrikv store proto core)
	$(link) $(LIB_uv) $(LIB_pbc) $(LIB_yaml) $(LIB_xxh) $(call pkg,cmocka) -lm -pthread
$(call objs,$(wildcard tests/fault/*.c)): | $(GEN).h
build-tests: $(faults)

check-faults: build-tests ## every call of the daemon that can fail does, once and for good (minutes)
	@FAULT_STRIDE=1 TRIKV_TEST_TIMEOUT=3600 $(run_tests) tests/check_faults.sh

coverage: ## what all of this reaches: lines and branches of each file (BUILD=coverage)
	@$(MAKE) BUILD=coverage build-tests
	@find build/coverage-$(notdir $(CC)) -name '*.gcda' -delete
	@$(MAKE) BUILD=coverage check-reached
	@tests/coverage build/coverage-$(notdir $(CC))/obj daemon proto store client

check-reached: build-tests
	@TRIKV_TEST_TIMEOUT=900 $(run_tests) $(tests) tests/check_faults.sh

# Programs that look at time, or that do the same so often that they would take an hour.
VALGRIND_SLOW := codec_quality kv_quality service stress
# Leaks are the daemon's alone: tests end processes in the middle, and ASan looks for theirs.
VALGRIND := valgrind --quiet --error-exitcode=99 --suppressions=$(abspath tests/valgrind.supp)
VALGRIND_LEAKS := --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite
VALGRIND_B := build/valgrind-$(notdir $(CC))
valgrind_tests := $(filter-out $(VALGRIND_SLOW:%=$B/tests/check_%),$(tests))
check-valgrind: ## test programs and daemon under Valgrind's memcheck (docs/reliability.md)
	@$(MAKE) BUILD=valgrind build-tests
	@mkdir -p $(VALGRIND_B)/emulated
	@for p in $(notdir $(programs)); do \
		printf '#!/bin/sh\nexec %s %s "$$@"\n' '$(VALGRIND) $(VALGRIND_LEAKS)' $(abspath $(VALGRIND_B))/bin/$$p \
		>$(VALGRIND_B)/emulated/$$p && chmod +x $(VALGRIND_B)/emulated/$$p; done
	@TRIKV_TEST_TIMEOUT=900 TRIKV_BIN=$(abspath $(VALGRIND_B))/emulated TRIKV_RUNNER='$(VALGRIND)' \
		tests/run $(valgrind_tests:$B/%=$(VALGRIND_B)/%)

# What needs nothing that MSan has not seen compiled: no daemon, no library that fills memory (jansson, zstd).
msan_tests := $(patsubst %,$B/tests/check_%,allocate arena attention codec codec_format fork frame gate half \
	kept_set kernels ladder map_read mixed plan planted policy pool ranges rotation select session \
	session_limits session_methods window)
check-msan: ## core and store under clang's MemorySanitizer, with the C kernels
	@$(MAKE) CC=clang BUILD=msan check-initialised

check-initialised: $(msan_tests)
	@TRIKV_TEST_TIMEOUT=900 $(run_tests) $(msan_tests)

FUZZERS := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_SECONDS ?= 10
fuzzers := $(patsubst tests/fuzz/%.c,$B/fuzz/%,$(FUZZERS)) $B/fuzz/seeds
$(fuzzers): $B/fuzz/%: $B/obj/tests/fuzz/%.o \
	$(patsubst %,$B/lib/%.a,aids tools daemon libtrikv store proto core)
	$(link) $(if $(filter fuzz_%,$(@F)),-fsanitize=fuzzer) \
		$(LIB_uv) $(LIB_pbc) $(LIB_yaml) $(LIB_xxh) $(LIB_zlib) $(LIB_zstd) $(call pkg,cmocka) -lm -pthread
$(call objs,$(FUZZERS)): | $(GEN).h

fuzzers: $(fuzzers)

check-fuzz: ## run every fuzz target for FUZZ_SECONDS (10) each, with clang's fuzzer
	@$(MAKE) CC=clang BUILD=fuzz fuzzers
	@tests/fuzz/run build/fuzz-clang/fuzz $(FUZZ_SECONDS)

check-all: ## everything that CI runs; each of these also runs alone
	@$(MAKE) WERROR=1 check
	@$(MAKE) check-more

# The long ones two at a time, each shown whole when it ends; what comes after a failure runs too.
check-more: ## what CI runs after `make test`
	@$(MAKE) -k lint check-crash check-ops check-deb check-reproducible
	@$(MAKE) -k -j2 -Orecurse check-neon check-clang check-asan check-tsan check-fuzz check-isa

lint: ## formatting, and what cppcheck and the shell find
	@tests/lint $(SOURCES)

format: ## bring every source into form
	clang-format -i $(SOURCES)

UNITDIR ?= $(or $(if $(filter /usr /usr/local,$(PREFIX)),$(shell \
	$(PKG) --variable=systemdsystemunitdir systemd 2>/dev/null)),$(PREFIX)/lib/systemd/system)
units := trikvd.service trikvd.socket trikvd-metrics.socket
# Where Debian's Python looks by itself, else a folder for PYTHONPATH.
PYTHONDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/lib/python3/dist-packages,$(PREFIX)/share/trikv/python)
PYTHON_FILES = $(wildcard bindings/python/trikv/*.py bindings/python/trikv/*/*.py) \
	bindings/python/trikv/py.typed
fill_in = sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|g' \
	-e 's|@VERSION@|$(VERSION)|g' -e 's|@LIBDIR@|$(LIBDIR)|g'
D := $(DESTDIR)

include ops/ops.mk

install: all man ## install into DESTDIR/PREFIX; an existing configuration is left alone
	install -d $D$(PREFIX)/bin $D$(LIBDIR)/pkgconfig $D$(PREFIX)/include \
		$D$(PREFIX)/share/trikv/models $D$(PREFIX)/lib/sysusers.d \
		$(foreach s,1 5 7 8,$D$(PREFIX)/share/man/man$s) \
		$D$(PREFIX)/share/bash-completion/completions \
		$D$(SYSCONFDIR)/trikv/profiles $D$(UNITDIR)
	install -m 755 $(filter-out %/trikv-demo,$(programs)) $D$(PREFIX)/bin
	install -m 644 $B/lib/libtrikv.a $D$(LIBDIR)
	install -m 755 $B/lib/libtrikv.so.0 $D$(LIBDIR)
	ln -sf libtrikv.so.0 $D$(LIBDIR)/libtrikv.so
	install -m 644 client/trikv.h bindings/cpp/trikv.hpp $D$(PREFIX)/include
	$(fill_in) client/trikv.pc.in >$D$(LIBDIR)/pkgconfig/libtrikv.pc
	for p in $(man_pages); do \
		install -m 644 $$p $D$(PREFIX)/share/man/man$${p##*.} || exit 1; done
	install -m 644 ops/completion.bash $D$(PREFIX)/share/bash-completion/completions/trikvctl
	for p in $(completed); do \
		ln -sf trikvctl $D$(PREFIX)/share/bash-completion/completions/$$p || exit 1; done
	for u in $(units); do $(fill_in) systemd/$$u >$D$(UNITDIR)/$$u || exit 1; done
	install -m 644 systemd/trikv.sysusers.conf $D$(PREFIX)/lib/sysusers.d/trikv.conf
	install -m 644 $(wildcard models/*.gguf models/README.md) $D$(PREFIX)/share/trikv/models
	for f in $(PYTHON_FILES:bindings/python/%=%); do \
		install -D -m 644 bindings/python/$$f $D$(PYTHONDIR)/$$f || exit 1; done
	for f in $(wildcard conf/profiles/*); do \
		test -e $D$(SYSCONFDIR)/trikv/profiles/$${f##*/} || \
		install -m 644 $$f $D$(SYSCONFDIR)/trikv/profiles || exit 1; done
	test -e $D$(SYSCONFDIR)/trikv/trikvd.yaml || sed 's|/etc/trikv|$(SYSCONFDIR)/trikv|g' \
		conf/trikvd.yaml >$D$(SYSCONFDIR)/trikv/trikvd.yaml

uninstall: ## remove what install put there, except the configuration
	rm -f $(patsubst $B/bin/%,$D$(PREFIX)/bin/%,$(programs)) $D$(PREFIX)/include/trikv.h $D$(PREFIX)/include/trikv.hpp \
		$D$(LIBDIR)/libtrikv.a $D$(LIBDIR)/libtrikv.so.0 $D$(LIBDIR)/libtrikv.so \
		$(foreach p,$(man_pages),$D$(PREFIX)/share/man/man$(subst .,,$(suffix $p))/$(notdir $p)) \
		$(addprefix $D$(PREFIX)/share/bash-completion/completions/,trikvctl $(completed)) \
		$D$(LIBDIR)/pkgconfig/libtrikv.pc $(units:%=$D$(UNITDIR)/%) \
		$D$(PREFIX)/lib/sysusers.d/trikv.conf
	rm -rf $D$(PREFIX)/share/trikv $D$(PYTHONDIR)/trikv

clean: ## remove the build folder
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' Makefile ops/ops.mk | \
		awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo
	@echo 'BUILD=release|debug|asan|tsan, CC, CFLAGS, WERROR=1, V=1, PREFIX, SYSCONFDIR, DESTDIR'

# The comparison kernels of the benchmark use VNNI, and nothing else does by this suffix.
ISA_vnni ?= $(ISA_avx512) -mavx512vnni
BENCH    := $(wildcard bench/*.c)

$(call objs,$(BENCH)): | $(GEN).h
$B/bin/trikv-bench: $(call objs,$(BENCH)) $(patsubst %,$B/lib/%.a,tools daemon store libtrikv core)
	$(link) $(LIB_uv) $(LIB_pbc) $(LIB_yaml) $(LIB_xxh) $(LIB_zlib) $(LIB_zstd) -lm -pthread

# Built with the programs; tests/check_bench.sh runs it.
all: $B/bin/trikv-bench
build-tests: $B/bin/trikv-bench

.PHONY: bench
bench: $B/bin/trikv-bench $B/bin/trikvd ## measure this machine (minutes), write docs/performance.md
	$B/bin/trikv-bench report --in bench/performance.in.md --out docs/performance.md

.PHONY: bench-long
bench-long: $B/bin/trikv-bench $B/bin/trikvd ## the appliance at full length, write docs/appliance.md
	$B/bin/trikv-bench report --in bench/appliance.in.md --out docs/appliance.md

.PHONY: quality
quality: $B/bin/trikv-eval $B/bin/trikvd ## measure a model with its cache compressed (long), write docs/quality.md
	python3 tools/quality.py tools/quality.in.md docs/quality.md

-include $(wildcard $B/obj/*/*.d)
