package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/apiserver"
)

func apiserverCommand() *cobra.Command {
	return processCommand(&cobra.Command{
		Use:   "apiserver",
		Short: "Run a cluster's mesh API server",
		Long: "Run a cluster's mesh API server, with an embedded etcd unless --etcd-endpoints names an\n" +
			"existing one. The first start creates the cluster's certificate authority and writes a\n" +
			"context for the first operator.",
	}, apiserver.Defaults(), map[string]string{
		"cluster":                "name of the cluster: 1 to 32 of a-z, 0-9 and -; it cannot change later",
		"id":                     "number of the cluster, unique in the mesh; it cannot change later",
		"pod-cidrs":              "addresses of all pods of the cluster, those of IPv4 before those of IPv6",
		"service-cidr":           "addresses of its services, of the IP family of the first of its pods",
		"ipv6-service-cidr":      "IPv6 addresses of its services, if they may have any",
		"max-connected-clusters": "255 or 511, the same in the whole mesh; 511 halves the identities of each cluster",
		"data-dir":               "folder for certificates and the embedded etcd",
		"admin-config":           "file to write the first operator's context to",
		"advertise":              "address at which agents, operators and peers reach this machine",
		"advertise-elsewhere":    "allow --advertise to be the address of a load balancer in front of this machine",
		"advertise-names":        "more names and addresses of this machine, for its certificates",
		"listen":                 "address of the API, with mutual TLS",
		"etcd-listen":            "address of the embedded etcd, with mutual TLS",
		"name":                   "name among the API servers of the cluster (default: --advertise)",
		"etcd-peer-listen":       "address of the embedded etcd for those of other API servers, with mutual TLS; empty: it stays alone",
		"join":                   "file with a join bundle from weft server add; used only until it has joined",
		"manifests":              "folder of manifests to follow: what they say is applied, what is no longer in them is deleted",
		"kubernetes":             "read the cluster's objects from a Kubernetes API server",
		"kubeconfig":             "file with the access to it; empty: the service account of the pod",
		"kube-context":           "context in that file; empty: its current one",
		"kubernetes-uid":         "UID of the namespace kube-system, to follow another Kubernetes cluster than before",
		"agent-account":          "service account of Kubernetes, as NAMESPACE/NAME, whose pods are this cluster's agents: they join by their tokens",
		"kubernetes-namespace":   "namespace of Kubernetes where the API servers find each other and keep what a lost store cannot get back",
		"policy-webhook":         "check policies when they are applied in Kubernetes; what happens with them while this does not answer: Ignore or Fail; empty: do not check",
		"ipam":                   "who gives nodes of Kubernetes their pod CIDRs: kubernetes (spec.podCIDRs) or cluster-pool (this server)",
		"metrics-address":        "address and port for /metrics in plain HTTP; empty: none",
		"etcd-quota-bytes":       "maximum size of the embedded etcd's database, in bytes; beyond it, writes are refused",
		"disk-reserve-bytes":     "disk space to keep free, in bytes; below it, writes are refused",
		"etcd-endpoints":         "https URLs of an existing etcd to use",
		"etcd-ca":                "file with the CA of that etcd",
		"etcd-cert":              "file with the client certificate for that etcd, for its user root",
		"etcd-key":               "file with the key of that certificate",
		"peer-entries":           "maximum number of entries copied from one peer",
		"peer-bytes":             "maximum number of bytes copied from one peer",
		"peer-changes":           "changes copied from one peer per second; the rest is delayed",
		"peer-history-bytes":     "bytes of history that one peer may leave in the store per second; the rest is delayed",
		"gossip-port":            "port for gossip with this cluster's agents; 0: none",
		"wan-gossip-port":        "port for gossip with other clusters' API servers; 0: none",
	}, func(ctx context.Context, c apiserver.Config, log *slog.Logger) error {
		c.Log = log
		c.Version = version
		return apiserver.Run(ctx, c)
	})
}
