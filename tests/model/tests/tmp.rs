use perigee_model::world::*;
use std::time::Duration;
#[test] fn hiccup() {
  for late in [0.0, 0.002, 0.01, 0.05] { let mut s=(0,0,0);
    for seed in 0..100 { let mut p=Plan{nodes:20..=20, slots:1, visitors_per_second:100.0, length: Duration::from_secs(5), origin: Origin{time_ms: 2000..=2500, lifetime: |_| (20_000,0), streamed:0.0, ..Plan::default().origin}, ..Plan::default()}; p.network.late=late; p.network.late_ms=101..=200;
      let o=run(seed,p); s.0+=o.count.calls; s.1+=o.count.lost; s.2+=o.count.stored; }
    println!("late {late}: calls {} (ideal 100) lost {} stored {}", s.0,s.1,s.2); }
}
