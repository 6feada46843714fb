#!/usr/bin/env bash
# CPU per cached hit, Perigee beside nginx's proxy_cache, in one run: both pinned to core 0 with one worker, the load generator on core 1,
# in turn, medians of ROUNDS. CPU time of the server per request is the figure to trust; machines are noisy, rates are not.
# Only loopback; bounded by ROUNDS (7) x SECONDS_EACH (3) x 2 sizes x 2 servers.
set -euo pipefail
cd "$(dirname "$0")/.."
ROUNDS=${ROUNDS:-7} SECONDS_EACH=${SECONDS_EACH:-3} CONNECTIONS=${CONNECTIONS:-64}
work=$(mktemp -d)
chmod 755 "$work"
pids=()
stop() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$work"; }
trap stop EXIT
free_port() { node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })'; }
origin=$(free_port) nginx=$(free_port) ours=$(free_port)
mkdir -p "$work/www" "$work/cache" "$work/tmp"
for body in 1k:1024 16k:16384; do head -c "${body#*:}" /dev/urandom | base64 -w0 | head -c "${body#*:}" >"$work/www/${body%:*}"; done
common="user root; daemon off; worker_processes 1; worker_rlimit_nofile 8192; error_log $work/error.log warn;
events { worker_connections 4096; }"
http="access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000;
client_body_temp_path $work/tmp; proxy_temp_path $work/tmp; fastcgi_temp_path $work/tmp; uwsgi_temp_path $work/tmp; scgi_temp_path $work/tmp;"
cat >"$work/origin.conf" <<CONF
$common
pid $work/origin.pid;
http { $http
  server { listen 127.0.0.1:$origin; root $work/www; etag on; add_header Cache-Control "public, max-age=3600, s-maxage=3600"; } }
CONF
cat >"$work/nginx.conf" <<CONF
$common
pid $work/nginx.pid;
http { $http
  open_file_cache max=1000 inactive=300s; open_file_cache_valid 60s; open_file_cache_min_uses 1;
  proxy_cache_path $work/cache levels=1:2 keys_zone=c:16m max_size=1g inactive=600m use_temp_path=off;
  upstream o { server 127.0.0.1:$origin; keepalive 64; }
  server { listen 127.0.0.1:$nginx;
    location / { proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_cache c;
      proxy_cache_key \$scheme\$host\$request_uri; proxy_cache_lock on; proxy_cache_background_update on; proxy_cache_revalidate on;
      proxy_cache_use_stale error timeout updating; add_header X-Cache \$upstream_cache_status; } } }
CONF
cat >"$work/perigee.yaml" <<YAML
region: sfo1
threads: 1
data: $work/data
listen: {http: ["127.0.0.1:$ours"], admin: off}
deployments: [{upstream: "http://127.0.0.1:$origin", name: bench, aliases: [127.0.0.1]}]
YAML
taskset -c 1 nginx -c "$work/origin.conf" & pids+=($!)
taskset -c 0 nginx -c "$work/nginx.conf" & pids+=($!); nginx_pid=$!
# As nginx: no access log.
RUST_LOG=error taskset -c 0 ${PERIGEE:-target/release/perigee} -c "$work/perigee.yaml" & pids+=($!); ours_pid=$!
for port in $origin $nginx $ours; do
	for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
done
for path in 1k 16k; do for port in $nginx $ours; do for _ in 1 2 3; do curl -fs -o /dev/null "http://127.0.0.1:$port/$path"; done; done; done

# CPU ticks of a process and its children.
ticks() {
	local total=0 pid
	for pid in "$1" $(cat /proc/"$1"/task/*/children 2>/dev/null); do
		total=$((total + $(sed 's/^.*) //' "/proc/$pid/stat" | awk '{print $12 + $13}')))
	done
	echo $total
}
hz=$(getconf CLK_TCK)
measure() { # name pid port path -> name path requests rate us_per_request
	local before after out requests rate
	before=$(ticks "$2")
	out=$(taskset -c 1 wrk -t1 -c"$CONNECTIONS" -d"${SECONDS_EACH}s" "http://127.0.0.1:$3/$4")
	after=$(ticks "$2")
	requests=$(awk '/requests in/ {print $1}' <<<"$out")
	rate=$(awk '/Requests\/sec/ {print $2}' <<<"$out")
	grep -q 'Non-2xx\|Socket errors' <<<"$out" && { echo "$1 $4: failed answers" >&2; grep 'Non-2xx\|Socket errors' <<<"$out" >&2; }
	awk -v name="$1" -v path="$4" -v n="$requests" -v r="$rate" -v t=$((after - before)) -v hz="$hz" \
		'BEGIN {printf "%s %s %d %.0f %.3f\n", name, path, n, r, t / hz * 1e6 / n}'
}
: >"$work/rows"
for round in $(seq "$ROUNDS"); do
	for path in 1k 16k; do
		measure nginx "$nginx_pid" "$nginx" "$path" >>"$work/rows"
		measure perigee "$ours_pid" "$ours" "$path" >>"$work/rows"
	done
	echo "round $round of $ROUNDS" >&2
done
median() { awk -v name="$1" -v path="$2" -v col="$3" '$1 == name && $2 == path {print $col}' "$work/rows" | sort -n | awk '{v[NR] = $1} END {print (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2)}'; }
echo "$(nginx -v 2>&1); $(wrk -v 2>&1 | head -n 1 | cut -d' ' -f1-2); one worker each, pinned; medians of $ROUNDS rounds of ${SECONDS_EACH} s, $CONNECTIONS connections"
printf '%-6s %-9s %12s %14s\n' body server "req/s" "CPU us/request"
for path in 1k 16k; do
	for name in nginx perigee; do printf '%-6s %-9s %12s %14s\n' $path $name "$(median $name $path 4)" "$(median $name $path 5)"; done
	awk -v a="$(median perigee $path 5)" -v b="$(median nginx $path 5)" -v path=$path 'BEGIN {printf "%-6s ratio perigee / nginx, CPU per request: %.2f\n", path, a / b}'
done
