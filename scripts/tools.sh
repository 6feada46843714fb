#!/usr/bin/env bash
# Installs what a make target needs and the machine lacks: Debian packages by apt-get, programs in Rust by cargo.
# usage: tools.sh build|test|slow|bench|load|deny
set -euo pipefail

packages() {
	local missing=()
	for pair in "$@"; do
		command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	[ ${#missing[@]} -eq 0 ] && return
	if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
		echo "missing: ${missing[*]}; install these packages, or run this as root on Debian" >&2
		exit 1
	fi
	echo "installing: ${missing[*]}"
	# The tests start servers of their own: what is installed must not run as a service.
	local policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
		trap "rm -f $policy" EXIT
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

rust() {
	command -v "$1" >/dev/null || [ -x "$HOME/.cargo/bin/$1" ] && return
	echo "installing $1 with cargo (a few minutes)"
	cargo install --locked "${2:-$1}"
}

# Pingora builds zlib-ng with cmake.
build() { packages cc=gcc cmake=cmake make=make node=nodejs; }

case "${1:-}" in
build) build ;;
test) build; packages curl=curl redis-server=redis-server openssl=openssl ;;
slow) build; packages curl=curl redis-server=redis-server openssl=openssl ;;
bench) packages nginx=nginx-light varnishd=varnish redis-server=redis-server wrk=wrk taskset=util-linux curl=curl ;;
load) packages curl=curl; rust oha ;;
deny) rust cargo-deny ;;
*) sed -n 2,3p "$0" >&2; exit 2 ;;
esac
