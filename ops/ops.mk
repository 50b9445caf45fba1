# Manual pages, Debian packages, and what is checked of them and of the files beside this one.

RELEASED := November 22, 2026
# Pages take their options from --help: the programs must run. A cross build says where such are.
MAN_BIN ?= $B/bin

man_programs := trikvd.8 trikvctl.1 trikv-run.1 trikv-calibrate.1 trikv-eval.1
man_pages    := $(addprefix $B/man/,$(man_programs) trikvd.yaml.5 trikv-profile.5 trikv-protocol.7)

fill_page = $(call say,MAN)mkdir -p $(@D) && man/fill $< '$(RELEASED)' $(VERSION)

$(addprefix $B/man/,$(man_programs)): $B/man/%: man/%.in man/fill $(programs)
	$(call say,MAN)mkdir -p $(@D) && $(MAN_BIN)/$(basename $*) --help >$@.help
	@man/fill $< '$(RELEASED)' $(VERSION) $@.help >$@ && rm $@.help
$B/man/trikvd.yaml.5: man/trikvd.yaml.5.in man/fill conf/trikvd.yaml
	$(fill_page) conf/trikvd.yaml >$@
$B/man/trikv-profile.5: man/trikv-profile.5.in man/fill docs/profiles.md
	$(fill_page) docs/profiles.md >$@
$B/man/trikv-protocol.7: man/trikv-protocol.7.in man/fill docs/protocol.md
	$(fill_page) docs/protocol.md >$@

completed := trikvd trikv-run trikv-calibrate trikv-eval

.PHONY: man deb deb-arm64 check-deb check-ops check-reproducible

man: $(man_pages) ## make the manual pages, in the build folder

deb: ## Debian packages of this machine's architecture, in build/deb
	@ops/deb.sh

deb-arm64: ## the same for arm64, cross-built
	@tests/arm64_root.sh $(ARM_ROOT)
	@ops/deb.sh arm64 $(abspath $(ARM_ROOT))

check-deb: ## build the packages, lint them, run what is in them
	@$(run_tests) tests/packages.sh

check-ops: build-tests man $B/bin/trikv-run ## metrics, pages, units, rules: with promtool, mandoc, Chromium and others
	@$(run_tests) tests/ops.sh

check-reproducible: ## build twice, in two folders: the same bytes
	@$(run_tests) tests/reproducible.sh
