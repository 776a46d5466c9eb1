package mcs

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/wire"
)

// merged is the one service that clusters export, each in its own words.
type merged struct {
	wire.ServiceExport // of the oldest, with the ports of all
	clusters           []string
	conflict           conflict
}

// conflict is in what the exports differ.
type conflict struct{ reasons, messages []string }

func (c *conflict) add(reason mcs.ServiceExportConditionReason, format string, args ...any) {
	if !slices.Contains(c.reasons, string(reason)) {
		c.reasons = append(c.reasons, string(reason))
		c.messages = append(c.messages, fmt.Sprintf(format, args...))
	}
}

// merge settles what differs among exports as KEP-1645 says: ports are those of all, and of
// all else, as of a port that is in several, the oldest export counts. The
// families are those that all have, so that each of them leads to all backends. There is one export at least.
func merge(exports []*wire.ServiceExport) merged {
	exports = slices.Clone(exports)
	slices.SortFunc(exports, func(a, b *wire.ServiceExport) int {
		return cmp.Or(a.Created.Compare(b.Created.Time), strings.Compare(a.Cluster, b.Cluster))
	})
	oldest := exports[0]
	m := merged{ServiceExport: *oldest}
	for _, e := range exports {
		m.clusters = append(m.clusters, e.Cluster)
	}
	slices.Sort(m.clusters)
	m.Ports = m.conflict.ports(exports)
	m.IPFamilies = m.conflict.families(exports)
	for _, e := range exports[1:] {
		differ := func(is bool, reason mcs.ServiceExportConditionReason, what string, value any) {
			if is {
				m.conflict.add(reason, "%s differs between clusters %s and %s: %v counts, of the older export in %s", what, oldest.Cluster, e.Cluster, value, oldest.Cluster)
			}
		}
		differ(e.Type != oldest.Type, mcs.ServiceExportReasonTypeConflict, "type", oldest.Type)
		differ(e.SessionAffinity != oldest.SessionAffinity, mcs.ServiceExportReasonSessionAffinityConflict, "sessionAffinity", oldest.SessionAffinity)
		differ(seconds(e) != seconds(oldest), mcs.ServiceExportReasonSessionAffinityConfigConflict, "sessionAffinityConfig.clientIP.timeoutSeconds", seconds(oldest))
		differ(policy(e) != policy(oldest), mcs.ServiceExportReasonInternalTrafficPolicyConflict, "internalTrafficPolicy", policy(oldest))
		differ(distribution(e) != distribution(oldest), mcs.ServiceExportReasonTrafficDistributionConflict, "trafficDistribution", cmp.Or(distribution(oldest), "none"))
		differ(!maps.Equal(e.Labels, oldest.Labels), mcs.ServiceExportReasonLabelsConflict, "exportedLabels", oldest.Labels)
		differ(!maps.Equal(e.Annotations, oldest.Annotations), mcs.ServiceExportReasonAnnotationsConflict, "exportedAnnotations", oldest.Annotations)
	}
	return m
}

func seconds(e *wire.ServiceExport) int32 {
	c := e.SessionAffinityConfig
	if e.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return corev1.DefaultClientIPServiceAffinitySeconds
	}
	return *c.ClientIP.TimeoutSeconds
}

func policy(e *wire.ServiceExport) corev1.ServiceInternalTrafficPolicy {
	if p := e.InternalTrafficPolicy; p != nil {
		return *p
	}
	return corev1.ServiceInternalTrafficPolicyCluster
}

// distribution reads the older name of a preference as the newer one, which means the same.
func distribution(e *wire.ServiceExport) string {
	if e.TrafficDistribution == nil {
		return ""
	}
	if *e.TrafficDistribution == corev1.ServiceTrafficDistributionPreferClose {
		return corev1.ServiceTrafficDistributionPreferSameZone
	}
	return *e.TrafficDistribution
}

// ports are those of all exports, the oldest first. A port is its number and protocol; a name
// belongs to the first that has it.
func (c *conflict) ports(exports []*wire.ServiceExport) []mcs.ServicePort {
	type from struct {
		mcs.ServicePort
		cluster string
	}
	var all []from
	differ := func(format string, args ...any) {
		c.add(mcs.ServiceExportReasonPortConflict, format, args...)
	}
	for _, e := range exports {
		for _, p := range e.Ports {
			p.Protocol = cmp.Or(p.Protocol, corev1.ProtocolTCP)
			same := slices.IndexFunc(all, func(o from) bool { return o.Port == p.Port && o.Protocol == p.Protocol })
			named := slices.IndexFunc(all, func(o from) bool { return o.Name == p.Name })
			switch {
			case same >= 0 && all[same].Name != p.Name:
				differ("port %d/%s is called %q in cluster %s and %q in %s: the name of the older export counts", p.Port, p.Protocol, all[same].Name, all[same].cluster, p.Name, e.Cluster)
			case same >= 0 && appProtocol(all[same].ServicePort) != appProtocol(p):
				differ("appProtocol of port %d/%s differs between clusters %s and %s: that of the older export counts", p.Port, p.Protocol, all[same].cluster, e.Cluster)
			case same >= 0:
			case named >= 0:
				differ("port name %q is %d/%s in cluster %s and %d/%s in %s: that of the older export counts, and the other is not served", p.Name, all[named].Port, all[named].Protocol, all[named].cluster, p.Port, p.Protocol, e.Cluster)
			default:
				all = append(all, from{p, e.Cluster})
			}
		}
	}
	for _, e := range exports {
		if len(e.Ports) != len(all) {
			differ("cluster %s exports %d of the %d ports that the clusters have together", e.Cluster, len(e.Ports), len(all))
		}
	}
	out := make([]mcs.ServicePort, len(all))
	for i, p := range all {
		out[i] = p.ServicePort
	}
	return out
}

func appProtocol(p mcs.ServicePort) string {
	if p.AppProtocol == nil {
		return ""
	}
	return *p.AppProtocol
}

// families are those that all exports have. One that has none in common with those before
// is left out of it. nil: none of them says.
func (c *conflict) families(exports []*wire.ServiceExport) (all []corev1.IPFamily) {
	for _, e := range exports {
		if len(e.IPFamilies) == 0 { // Cilium up to 1.18
			continue
		}
		if all == nil {
			all = slices.Clone(e.IPFamilies)
			continue
		}
		common := slices.DeleteFunc(slices.Clone(all), func(f corev1.IPFamily) bool { return !slices.Contains(e.IPFamilies, f) })
		if len(common) == 0 {
			c.add(mcs.ServiceExportReasonIPFamilyConflict, "cluster %s has none of the IP families %v of the older exports: its backends are not reached", e.Cluster, all)
			continue
		}
		all = common
	}
	return all
}
