package apiserver

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weft-mesh/weft/apiserver/peering"
)

// metrics are the API server's own and those of its parts. etcd registers its metrics
// itself; they are served along with these.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
}

func newMetrics(s *server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "weft_apiserver_request_seconds", Help: "Time to answer an API request, by method and status.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"method", "status"}),
	}
	m.registry.MustRegister(m.requests, nodeCollector{s}, peerCollector{s})
	return m
}

// serve answers /metrics.
func (m *metrics) serve() http.Handler {
	// Go's and the process's metrics are in the default registry, with etcd's.
	return promhttp.HandlerFor(prometheus.Gatherers{m.registry, prometheus.DefaultGatherer}, promhttp.HandlerOpts{})
}

// count measures how long next takes. Streams are measured when they end.
func (m *metrics) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began, seen := time.Now(), &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(seen, r)
		m.requests.WithLabelValues(methodLabel(r.Method), strconv.Itoa(seen.status)).Observe(time.Since(began).Seconds())
	})
}

// methodLabel bounds the label's values: any word is a method, and whoever has a
// certificate, peers too, can make up as many as they like.
func methodLabel(method string) string {
	switch method {
	case http.MethodGet, http.MethodPost, http.MethodDelete:
		return method
	}
	return "other"
}

// statusWriter remembers the status that was sent.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter. Informational responses come before the
// answer.
func (w *statusWriter) WriteHeader(status int) {
	if status >= http.StatusOK {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the underlying writer.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// nodeCollector reports what this server leads and has. Endpoints and refused claims are
// those of the controllers, so that summing over all servers counts them once.
type nodeCollector struct{ s *server }

var (
	endpointsDesc = prometheus.NewDesc("weft_apiserver_endpoints", "Accepted endpoints, by node.", []string{"node"}, nil)
	refusedDesc   = prometheus.NewDesc("weft_apiserver_refused_claims_total", "Claims of nodes that were refused, by node, resource and reason.", []string{"node", "resource", "reason"}, nil)
	leaderDesc    = prometheus.NewDesc("weft_apiserver_leader", "1 while this API server leads, that is, runs the controllers.", nil, nil)
	spaceDesc     = prometheus.NewDesc("weft_apiserver_disk_free_bytes", "Free bytes in the file system of the data folder.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c nodeCollector) Describe(out chan<- *prometheus.Desc) {
	out <- endpointsDesc
	out <- refusedDesc
	out <- leaderDesc
	out <- spaceDesc
}

// Collect implements prometheus.Collector.
func (c nodeCollector) Collect(out chan<- prometheus.Metric) {
	leads := 0.0
	if lead := c.s.controllers.Load(); lead != nil {
		leads = 1
		for node, n := range c.s.counts.byNode() {
			out <- prometheus.MustNewConstMetric(endpointsDesc, prometheus.GaugeValue, float64(n), node)
		}
		for _, r := range lead.endpoints.Status().Refusals {
			out <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(r.Count), r.Node, r.Resource, r.Reason)
		}
	}
	out <- prometheus.MustNewConstMetric(leaderDesc, prometheus.GaugeValue, leads)
	c.s.space.mu.Lock()
	left := c.s.space.left
	c.s.space.mu.Unlock()
	out <- prometheus.MustNewConstMetric(spaceDesc, prometheus.GaugeValue, float64(left))
}

// peerCollector reports the peers, if their mirrors run here.
type peerCollector struct{ s *server }

// Describe implements prometheus.Collector.
func (c peerCollector) Describe(out chan<- *prometheus.Desc) { (*peering.Peering)(nil).Describe(out) }

// Collect implements prometheus.Collector.
func (c peerCollector) Collect(out chan<- prometheus.Metric) {
	if lead := c.s.controllers.Load(); lead != nil {
		lead.peering.Collect(out)
	}
}
