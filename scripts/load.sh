#!/usr/bin/env bash
# Loads examples/hello with oha and shows, per URL: rate, latency, and how often which cache state was counted by the edge.
# Only loopback; bounded by SECONDS_EACH (5) and CONNECTIONS (50). Starts an edge of its own and stops it.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$HOME/.cargo/bin"
SECONDS_EACH=${SECONDS_EACH:-5} CONNECTIONS=${CONNECTIONS:-50}
work=$(mktemp -d)
port=$(python3 - <<<'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])' 2>/dev/null || echo 18080)
admin=$((port + 1))
cat >"$work/load.yaml" <<YAML
region: sfo1
data: $work/data
listen: {http: ["127.0.0.1:$port"], admin: "127.0.0.1:$admin"}
deployments: [{path: examples/hello, aliases: [127.0.0.1]}]
YAML
RUST_LOG=error target/release/perigee -c "$work/load.yaml" &
pid=$!
trap 'kill $pid 2>/dev/null; wait $pid 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 100); do curl -fs -o /dev/null "http://127.0.0.1:$admin/readyz" && break; sleep 0.1; done

states() { curl -fs "http://127.0.0.1:$admin/metrics" | sed -n 's/^perigee_http_requests_total{cache="\([A-Z]*\)"} \(.*\)/\1 \2/p'; }
printf '%-12s %10s %9s %9s %9s  %s\n' URL "req/s" p50 p99 failed "cache states"
for path in / /api/cached /api/swr /api/date; do
	before=$(states)
	oha --no-tui --output-format json -z "${SECONDS_EACH}s" -c "$CONNECTIONS" "http://127.0.0.1:$port$path" >"$work/oha.json"
	after=$(states)
	read -r rate p50 p99 failed < <(node -e '
		const r = JSON.parse(require("fs").readFileSync(process.argv[1]));
		const bad = Object.entries(r.statusCodeDistribution).filter(([s]) => s[0] !== "2").reduce((n, [, c]) => n + c, 0);
		const broken = Object.entries(r.errorDistribution).filter(([e]) => !/deadline/.test(e)).reduce((n, [, c]) => n + c, 0);
		const ms = (s) => (s * 1000).toFixed(2) + "ms";
		console.log(r.summary.requestsPerSec.toFixed(0), ms(r.latencyPercentiles.p50), ms(r.latencyPercentiles.p99), bad + broken);
	' "$work/oha.json")
	told=$(join <(sort <<<"$before") <(sort <<<"$after") | awk '$3 > $2 {printf "%s %d  ", $1, $3 - $2}')
	printf '%-12s %10s %9s %9s %9s  %s\n' "$path" "$rate" "$p50" "$p99" "$failed" "$told"
done
