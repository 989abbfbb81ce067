# pstorage. Two commands set it up on a fresh Debian machine with Go: `make up` and `make test`.

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin:/usr/local/go/bin

# Where `make up` keeps its cluster, and where it is mounted.
DIR ?= $(CURDIR)/run/dev
MOUNT ?= $(CURDIR)/run/mnt
CS ?= 3

.DEFAULT_GOAL := help
.PHONY: help up down man deb rpm build lib fio-engine quick test test-long test-net test-guide lint demo sim \
	bench peers-install fmt

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

up: ## install what is missing, build, start a cluster in the background, mount it
	@.ci/up "$(DIR)" "$(MOUNT)" "$(CS)"

down: ## stop what `make up` started; its data stay in run/dev
	@.ci/down "$(DIR)" "$(MOUNT)"

build: ## the binaries, in ./bin
	@mkdir -p bin
	@CGO_ENABLED=0 go build -buildvcs=auto -trimpath -o bin/ ./cmd/...
	@ls bin | sed 's|^|bin/|'

lib: ## the C library, in ./bin: libpstorage.so and pstorage.h (needs gcc)
	@mkdir -p bin
	@CGO_ENABLED=1 go build -buildmode=c-shared -trimpath -o bin/libpstorage.so ./cmd/libpstorage
	@rm -f bin/libpstorage.h && cp cmd/libpstorage/pstorage.h bin/
	@ls bin/libpstorage.so bin/pstorage.h

fio-engine: lib ## fio's engine for libpstorage, in ./bin (FIO_SRC=..., or fetches fio's source)
	@cmd/libpstorage/fio/build bin

man: build ## the manual pages, in ./bin/man
	@rm -rf bin/man
	@for p in pstorage pstorage-mdsd pstorage-csd pstorage-mount; do bin/$$p --man-pages bin/man; done
	@cp cmd/packaging/man/*.[58] bin/man/

deb: man ## Debian packages, in ./bin/deb (VERSION=...)
	@cmd/packaging/deb/build bin bin/deb $(VERSION)
	@ls bin/deb/*.deb

rpm: man ## RPM packages, in ./bin/rpm (VERSION=...; needs rpmbuild)
	@cmd/packaging/rpm/build bin bin/rpm $(VERSION)
	@ls bin/rpm/*.rpm

test: ## install what is missing, run all tests, the guide and the short demo (root for all of it)
	@.ci/test

test-long: ## the same without -short, all canaries, a browser on the web page, the demo in full
	@.ci/test -long

test-net: ## real processes on networks of their own, links cut and processes killed (root)
	@.ci/deps test
	@.ci/net

test-guide: ## the getting-started guide, typed on five machines of network namespaces (root)
	@.ci/deps test
	@go test -count=1 -timeout 5m -v -run 'TestGuide$$' ./cmd/packaging

lint: ## vet, staticcheck, govulncheck, manual pages, shell scripts; says what it left out
	@.ci/lint

demo: build ## a container on replicated storage, kills, bad input, speed (root)
	@.ci/deps test
	@perf/demo/demo.sh

sim: build ## simulated clusters under faults, for two minutes (SIM=-seeds N ...)
	@bin/pstorage-sim $(or $(SIM),-seeds 1000000 -time 2m -j 2 -seed $(shell date +%s))

quick: build ## the main figures beside raw fio on the same disk, in a minute
	@.ci/deps test
	@bin/pstorage-perf quick

bench: build ## all figures, with emulated disks (root); ten minutes; charts in perf/results
	@.ci/deps test
	@bin/pstorage-perf bench --out perf/results

peers-install: ## GlusterFS, MooseFS and Ceph, for bin/pstorage-perf peers; none is started
	@.ci/deps peers

fmt: ## gofmt
	@gofmt -l -w $$(git ls-files -co --exclude-standard '*.go')
