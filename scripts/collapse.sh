#!/usr/bin/env bash
# A crowd asks for one thing at the same moment: nginx (proxy_cache_lock), Varnish, Perigee, and three Perigees that share a Redis, beside
# each other in one run. Shows how often the origin was called and how long the clients waited, then what Perigee was to reach.
# All servers at their defaults for threads, on the same cores as clients and origin: compare within a run, and with `direct`, which is
# the origin without a server between. A missed target is a line, not a failure.
# Only loopback; about three minutes for each of ROUNDS (1). ONLY=cold,stale plays these scenarios alone, SERVERS="nginx perigee" these
# servers, VERBOSE=1 shows each node of the region (scripts/collapse/scenarios.mjs).
set -euo pipefail
cd "$(dirname "$0")/.."
export ROUNDS=${ROUNDS:-1}
SERVERS=${SERVERS:-nginx varnish perigee perigee-x3}
perigee=${PERIGEE:-target/release/perigee}
ulimit -n "$(ulimit -Hn)"
if [ "$(ulimit -n)" != unlimited ] && [ "$(ulimit -n)" -lt 8192 ]; then
	echo "a crowd of 1,000 needs 8192 open files, the limit is $(ulimit -n)" >&2
	exit 1
fi
work=$(mktemp -d)
chmod 755 "$work"
pids=()
stop() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$work"; }
trap stop EXIT
trap 'exit 130' INT TERM
# Eight that are free together.
read -r origin nginx varnish redis ours node1 node2 node3 < <(node -e '
	const servers = Array.from({ length: 8 }, () => require("net").createServer().listen(0, "127.0.0.1"));
	setTimeout(() => { console.log(servers.map((s) => s.address().port).join(" ")); servers.forEach((s) => s.close()); }, 100);')
start() { "$@" >>"$work/log" 2>&1 & pids+=($!); }
await_port() { # name port
	for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null && return; sleep 0.1; done
	echo "$1 did not start:" >&2
	tail -n 20 "$work/log" >&2
	exit 1
}
perigee_node() { # name port line of YAML
	cat >"$work/$1.yaml" <<-YAML
		region: sfo1
		node: $1
		data: $work/$1
		listen: {http: ["127.0.0.1:$2"], admin: off}
		grace: 1s
		deployments: [{upstream: "http://127.0.0.1:$origin", name: bench, aliases: [127.0.0.1]}]
		$3
	YAML
	# As the others: no access log.
	RUST_LOG=error start "$perigee" -c "$work/$1.yaml"
	await_port "$1" "$2"
}
start node scripts/collapse/origin.mjs "$origin"
await_port origin "$origin"
arguments=() versions=()
for server in $SERVERS; do
	case $server in
	nginx)
		mkdir -p "$work/cache" "$work/tmp"
		# The lock's own limits are the defaults. Whoever has waited for them goes alone, and hangs until proxy_read_timeout.
		cat >"$work/nginx.conf" <<-CONF
			user root; daemon off; worker_processes auto; error_log $work/error.log error; pid $work/nginx.pid;
			events { worker_connections 8192; }
			http { access_log off; keepalive_requests 1000000000;
			  client_body_temp_path $work/tmp; proxy_temp_path $work/tmp; fastcgi_temp_path $work/tmp; uwsgi_temp_path $work/tmp; scgi_temp_path $work/tmp;
			  proxy_cache_path $work/cache levels=1:2 keys_zone=c:16m max_size=1g inactive=600m use_temp_path=off;
			  upstream o { server 127.0.0.1:$origin max_fails=0; keepalive 64; }
			  server { listen 127.0.0.1:$nginx backlog=4096;
			    location / { proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout 10s; proxy_cache c;
			      proxy_cache_key \$scheme\$host\$request_uri; proxy_cache_lock on; proxy_cache_background_update on; proxy_cache_revalidate on;
			      proxy_cache_use_stale error timeout updating http_500 http_502 http_503 http_504; } } }
		CONF
		start nginx -c "$work/nginx.conf"
		await_port nginx "$nginx"
		arguments+=("nginx=$nginx") versions+=("$(nginx -v 2>&1 | sed 's/.*: //')") ;;
	varnish)
		printf 'vcl 4.1;\nbackend default { .host = "127.0.0.1"; .port = "%s"; }\n' "$origin" >"$work/default.vcl"
		# Threads are there before the crowd is, as in a Varnish that has been running for a while.
		start varnishd -F -j none -n "$work/varnish" -a "127.0.0.1:$varnish" -T none -f "$work/default.vcl" -s malloc,256M \
			-p thread_pool_min=500 -p listen_depth=4096
		await_port varnish "$varnish"
		arguments+=("varnish=$varnish") versions+=("$(varnishd -V 2>&1 | sed -n '1s/.*(\([^ ]*\).*/\1/p')") ;;
	perigee)
		perigee_node alone "$ours" ""
		arguments+=("perigee=$ours") ;;
	perigee-x3)
		start redis-server --port "$redis" --bind 127.0.0.1 --save "" --appendonly no --dir "$work" --maxmemory 256mb --maxmemory-policy volatile-lru
		await_port redis "$redis"
		for node in 1 2 3; do
			port=node$node
			perigee_node "node$node" "${!port}" "cache: {regional: {redis: \"redis://127.0.0.1:$redis\"}}"
		done
		arguments+=("perigee-x3=$node1,$node2,$node3") versions+=("redis $(redis-server --version | sed 's/.*v=\([^ ]*\).*/\1/')") ;;
	*) echo "unknown server: $server" >&2; exit 2 ;;
	esac
done
echo "${versions[*]}; node $(node --version); load $(cut -d' ' -f1 /proc/loadavg) on $(nproc) cores; the origin takes 500 ms where nothing else is said"
echo "Times in ms, from each client's request on, medians of $ROUNDS rounds; first: the first byte of the body; ratio: p99 to what the origin takes."
# Behind, so that a signal is acted on at once.
node --expose-gc scripts/collapse/run.mjs "$origin" "${arguments[@]}" & pids+=($!)
wait $!
