# Wherry: `make` builds, `make demo` shows it, `make test` runs what CI runs.
SHELL   := bash
TAGS    := no_cri,no_btrfs,no_zfs,no_devmapper,no_tracing
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
GO      := CGO_ENABLED=0 go
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo --preserve-env=PATH,HOME,GOPATH,GOCACHE,GOMODCACHE,GOFLAGS,CI)
E2E     := $(SUDO) env WHERRY_BIN=$(CURDIR)/bin/wherry TAGS=$(TAGS),e2e CGO_ENABLED=0 go test -tags $(TAGS),e2e -count=1
STATIC  := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: build check test demo lab lab-down bench soak images clean deps

build:
	$(GO) build -tags $(TAGS) -ldflags '$(LDFLAGS)' -o bin/wherry ./cmd/wherry

# What a new machine lacks: the runtime, and what the tests and examples use.
deps:
	@[ -n "$$(ls /var/lib/apt/lists/*Packages* 2>/dev/null)" ] || $(SUDO) apt-get update -qq
	@need=; for p in runc:runc nft:nftables iptables:iptables busybox:busybox-static docker-registry:docker-registry strace:strace ip:iproute2 curl:curl; do \
	  command -v $${p%%:*} >/dev/null || [ -x /usr/sbin/$${p%%:*} ] || need="$$need $${p##*:}"; done; \
	if [ -n "$$need" ]; then echo "installing$$need"; $(SUDO) apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$need >/dev/null; fi

images: deps
	$(GO) run ./tests/images/make -o build/images

check:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet -tags $(TAGS),e2e,soak,docker ./...
	$(GO) run $(STATIC) -tags $(TAGS),e2e,soak,docker ./...
	$(GO) mod tidy -diff
	$(GO) test -count=1 ./tests
	GOOS=linux GOARCH=arm64 $(GO) build -tags $(TAGS) -o /dev/null ./cmd/wherry
	GOOS=darwin GOARCH=arm64 $(GO) build -o /dev/null ./cmd/wherry

test: build images
	$(GO) test -tags $(TAGS) ./...
	$(E2E) -p 1 -timeout 40m ./...

demo: build images
	./examples/demo.sh

# A cluster to play with: make lab HOSTS=3, or make lab MANAGERS=5 WORKERS=10.
PLAY := env HOSTS=$(HOSTS) MANAGERS=$(MANAGERS) WORKERS=$(WORKERS) $(subst e2e,play,$(E2E)) -v -timeout 0
lab: build images
	@tests/lab/lab.sh up build/lab $(PLAY)

lab-down:
	@tests/lab/lab.sh down build/lab $(PLAY)

bench: build images
	$(E2E) -v -timeout 30m -run '^$$' -bench . -benchtime 1x ./tests/bench

# Debian's dockerd, unpacked and not installed: too much for each run of make test.
build/docker:
	rm -rf $@.new && mkdir -p $@.new && cd $@.new && apt-get download -qq docker.io containerd && for p in *.deb; do dpkg -x $$p . && rm $$p; done
	mv $@.new $@

soak: build images build/docker
	$(E2E) -tags $(TAGS),soak -v -timeout 0 -run '$(RUN)' ./tests/soak

clean:
	rm -rf bin build
