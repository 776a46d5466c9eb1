package meshagent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/wire"
)

// collector reads everything when it is asked: nothing is counted twice, and a
// restart loses nothing that the kernel keeps.
type collector struct{ agent *Agent }

var (
	descPackets = desc("datapath_packets_total", "Packets by the way they left the datapath.", "reason", "direction", "verdict")
	descBytes   = desc("datapath_bytes_total", "Bytes by the way they left the datapath.", "reason", "direction", "verdict")
	descRows    = desc("table_rows", "Rows of the agent's tables by status.", "table", "status")
	descSource  = desc("source_connected", "Whether a prefix of the cluster's etcd is being watched.", "prefix")
	descSynced  = desc("source_synced", "Whether a prefix was read in full.", "prefix")
	descHeard   = desc("source_age_seconds", "Time since the store last answered or reported a change.", "prefix")
	descPath    = desc("path_up", "Whether a node that is probed is reached through the tunnel.", "cluster", "node")
	descRTT     = desc("path_rtt_seconds", "Smoothed round-trip time through the tunnel.", "cluster", "node")
	descCluster = desc("cluster_path_up", "Whether any path to a peer cluster carries.", "cluster")
	descAge     = desc("peer_data_age_seconds", "Time since what a peer exports was last known to be complete here.", "cluster")
	descEvents  = desc("events_total", "Events taken from the datapath.")
	descAgain   = desc("flows_judged_again_total", "Packets that found their flow's verdict out of date and had it judged again.")
	descLost    = desc("events_lost_total", "Events that found the buffer full.")
	descMasked  = desc("masqueraded_connections", "Connections of pods with the world that come from the node's address, as of half a minute ago.")
	descEnded   = desc("sockets_ended_total", "Sockets that were ended because their service's backend was gone or, of the node's processes, cut off.")
	descHeld    = desc("flow_rows", "Rows of the flow table by the pod that opened them; without a pod those of the node itself.", "namespace", "pod")
	descShare   = desc("flow_share_rows", "Rows of the flow table that a pod, or the node itself, is sure of.", "namespace", "pod")
	descRefused = desc("flows_refused_total", "New flows that found no room in what their pod may hold of the flow table.", "namespace", "pod")
	descEvicted = desc("flows_evicted_total", "Unanswered flows that gave way to newer ones of the same pod, which had used up its share.", "namespace", "pod")
	descSilent  = desc("events_suppressed_total", "Events left out because their pod caused too many at once.", "namespace", "pod")
	descEpoch   = desc("key_epoch", "Epoch of this node's newest tunnel key.")
	descGen     = desc("policy_generation", "Generation of policy in force.")
	descProblem = desc("problems", "Rows that did not reach the kernel or are not believed.", "table")
	descReady   = desc("ready", "Whether everything known at the start is in the kernel.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("weft_agent_"+name, help, labels, nil)
}

// Describe sends nothing: label values come and go with rows.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	a := c.agent
	if counters, err := a.edges.Datapath.Counters(); err == nil {
		for _, n := range counters {
			verdict := "passed"
			if n.Reason.Drop() {
				verdict = "dropped"
			}
			count(descPackets, float64(n.Packets), n.Reason.String(), n.Dir.String(), verdict)
			count(descBytes, float64(n.Bytes), n.Reason.String(), n.Dir.String(), verdict)
		}
	}
	for _, s := range a.Tables.Summaries() {
		gauge(descRows, float64(s.Rows-s.Pending-s.Errors), s.Name, "done")
		gauge(descRows, float64(s.Pending), s.Name, "pending")
		gauge(descRows, float64(s.Errors), s.Name, "error")
	}
	for _, r := range a.reflectors {
		s := r.State()
		gauge(descSource, truth(s.Connected), s.Prefix)
		gauge(descSynced, truth(s.Synced), s.Prefix)
		if !s.Heard.IsZero() {
			gauge(descHeard, time.Since(s.Heard).Seconds(), s.Prefix)
		}
	}
	txn := a.Tables.DB.ReadTxn()
	for p := range a.Tables.Paths.All(txn) {
		seen := p.Seen()
		if seen.State == "" {
			continue // nobody asks it: in a large mesh most are like that
		}
		gauge(descPath, truth(p.Alive), p.Cluster, p.Node)
		gauge(descRTT, seen.RTT.Seconds(), p.Cluster, p.Node)
	}
	for cl := range a.Tables.Clusters.All(txn) {
		if !cl.Member() || cl.Own != nil {
			continue
		}
		path, known := a.rows.Cluster(cl.ID())
		gauge(descCluster, truth(path == bpf.PathAlive || !known), cl.Name)
		if at, ok := cl.Synced[wire.Nodes]; ok && !at.IsZero() {
			gauge(descAge, time.Since(at).Seconds(), cl.Name)
		}
	}
	byTable := map[string]int{}
	for p := range a.Tables.Problems.All(txn) {
		byTable[p.Table]++
	}
	for table, n := range byTable {
		gauge(descProblem, float64(n), table)
	}
	stats := a.ring.Stats()
	count(descEvents, float64(stats.Seen))
	if lost, err := a.edges.Datapath.Lost(); err == nil {
		count(descLost, float64(lost))
	}
	if again, err := a.edges.Datapath.JudgedAgain(); err == nil {
		count(descAgain, float64(again))
	}
	count(descEnded, float64(a.sockets.ended.Load()+a.connections.ended.Load()))
	gauge(descMasked, float64(a.edges.Datapath.Masqueraded()))
	if all, err := a.edges.Datapath.Holdings(); err == nil {
		owners := a.shares.owners()
		for _, h := range all {
			o, ok := owners[h.Owner]
			if !ok {
				continue // the next sweep deletes its flows
			}
			gauge(descHeld, float64(h.Used), o.namespace, o.pod)
			gauge(descShare, float64(h.Sure), o.namespace, o.pod)
			count(descRefused, float64(h.Refused), o.namespace, o.pod)
			count(descEvicted, float64(h.Evicted), o.namespace, o.pod)
			count(descSilent, float64(h.Suppressed), o.namespace, o.pod)
		}
	}
	own, _, _ := a.tunnels.Own()
	gauge(descEpoch, float64(own.Epoch))
	if x := a.program.Explain(); x != nil {
		gauge(descGen, float64(x.Gen))
	}
	gauge(descReady, truth(closed(a.program.Passed())))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
