package peering

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/mirror"
)

// The metrics, each by peer.
var (
	linkUp = prometheus.NewDesc("weft_peer_control_link_up",
		"1 if the control link to the peer's store is up. It says nothing about the data path.", []string{"peer"}, nil)
	dataAge = prometheus.NewDesc("weft_peer_data_age_seconds",
		"Time since the peer last proved that our copy of its state is current.", []string{"peer"}, nil)
	entries = prometheus.NewDesc("weft_peer_entries",
		"Entries of the peer in our store.", []string{"peer", "resource"}, nil)
	heldDeletions = prometheus.NewDesc("weft_peer_held_deletions",
		"Entries missing from the peer's store that are kept until an operator releases them.", []string{"peer", "resource"}, nil)
	refused = prometheus.NewDesc("weft_peer_refused_claims_total",
		"Claims of the peer that were refused.", []string{"peer", "resource", "reason"}, nil)
)

// Describe implements prometheus.Collector.
func (p *Peering) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{linkUp, dataAge, entries, heldDeletions, refused} {
		out <- d
	}
}

// Collect implements prometheus.Collector. The age is missing until the peer has been
// heard once.
func (p *Peering) Collect(out chan<- prometheus.Metric) {
	for _, s := range p.Status() {
		up := 0.0
		if s.Control.State == api.LinkUp {
			up = 1
		}
		out <- prometheus.MustNewConstMetric(linkUp, prometheus.GaugeValue, up, s.Name)
		if !s.Control.LastHeard.IsZero() {
			out <- prometheus.MustNewConstMetric(dataAge, prometheus.GaugeValue, s.Control.AgeSeconds, s.Name)
		}
		for _, m := range s.Mirrors {
			out <- prometheus.MustNewConstMetric(entries, prometheus.GaugeValue, float64(m.Entries), s.Name, m.Resource)
			out <- prometheus.MustNewConstMetric(heldDeletions, prometheus.GaugeValue, float64(m.Held), s.Name, m.Resource)
		}
	}
	for _, r := range p.working() {
		name := r.mirror.Peer().Name
		r.mirror.Refusals(func(resource string, reason mirror.Reason, n uint64) {
			out <- prometheus.MustNewConstMetric(refused, prometheus.CounterValue, float64(n), name, resource, string(reason))
		})
	}
}
