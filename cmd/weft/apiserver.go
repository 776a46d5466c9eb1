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
		Long: "Run a cluster's mesh API server, with an etcd inside it unless --etcd-endpoints names\n" +
			"another. At its first start it makes the cluster's certificate authority and leaves a\n" +
			"context for the first operator.",
	}, apiserver.Defaults(), map[string]string{
		"cluster":                "name of the cluster: 1 to 32 of a-z, 0-9 and -; it cannot change later",
		"id":                     "number of the cluster, that no other one of the mesh has; it cannot change later",
		"pod-cidrs":              "addresses of all pods of the cluster",
		"service-cidr":           "addresses of its services",
		"max-connected-clusters": "255 or 511, the same in the whole mesh; 511 halves the identities of each cluster",
		"data-dir":               "where certificates and the embedded etcd are",
		"admin-config":           "where the first operator's context is written",
		"advertise":              "address at which agents, operators and peers reach this machine",
		"advertise-elsewhere":    "allow --advertise to be the address of a load balancer that leads here",
		"advertise-names":        "further names and addresses of it, for its certificates",
		"listen":                 "address of the API, by mutual TLS",
		"etcd-listen":            "address of the embedded etcd, by mutual TLS",
		"metrics-address":        "address and port that serve /metrics in plain HTTP, loopback by default; empty: none",
		"etcd-quota-bytes":       "size of the embedded etcd's database beyond which writes are refused",
		"disk-reserve-bytes":     "how much of the disk stays free: writes are refused below it",
		"etcd-endpoints":         "https URLs of an existing etcd to use",
		"etcd-ca":                "file with the CA of that etcd",
		"etcd-cert":              "file with our client certificate there, as its user root",
		"etcd-key":               "file with its key",
		"peer-entries":           "how many entries are copied of one peer at most",
		"peer-bytes":             "how many bytes are copied of one peer at most",
		"peer-changes":           "how many changes of one peer are carried over per second; the rest comes late",
		"peer-history-bytes":     "how many bytes of history one peer may leave in the store per second; the rest comes late",
		"gossip-port":            "port of the gossip with this cluster's agents; 0: none",
		"wan-gossip-port":        "port of the gossip with other clusters' API servers; 0: none",
	}, func(ctx context.Context, c apiserver.Config, log *slog.Logger) error {
		c.Log = log
		c.Version = version
		return apiserver.Run(ctx, c)
	})
}
