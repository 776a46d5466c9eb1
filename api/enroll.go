package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"sigs.k8s.io/yaml"
)

// TokenAudience is the audience of the Kubernetes service account tokens that agents show to
// API servers. A token that was made for anybody else is refused.
const TokenAudience = "weft.io"

// Where a Kubernetes cluster keeps its first operator's context: in the Secret
// OperatorSecret of the namespace SystemNamespace, under OperatorContextKey.
const (
	SystemNamespace    = "weft-system"
	OperatorSecret     = "weft-operator"
	OperatorContextKey = "contexts.yaml"
)

// Bootstrap is what a node needs to ask for its join bundle: where the API servers are, and
// how to know them. It holds no secret.
type Bootstrap struct {
	// Servers are https URLs of the cluster's API servers, of which any will do.
	Servers []string `json:"servers"`
	// CA is the bundle, in PEM, that signs their certificates.
	CA string `json:"ca"`
}

// ReadBootstrap decodes and validates a Bootstrap in YAML or JSON.
func ReadBootstrap(text []byte) (b Bootstrap, err error) {
	if err := yaml.UnmarshalStrict(text, &b); err != nil {
		return b, err
	}
	_, _, err = b.parse()
	return b, err
}

func (b Bootstrap) parse() (bases []*url.URL, roots *x509.CertPool, err error) {
	for _, server := range b.Servers {
		base, err := url.Parse(server)
		if err != nil || base.Scheme != "https" || base.Host == "" {
			return nil, nil, fmt.Errorf("server %q is not an https URL", server)
		}
		bases = append(bases, base)
	}
	if len(bases) == 0 {
		return nil, nil, errors.New("it names no API server")
	}
	roots = x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(b.CA)) {
		return nil, nil, errors.New("its ca holds no certificate")
	}
	return bases, roots, nil
}

// EnrollRequest asks for the join bundle of the node that the request's token names.
type EnrollRequest struct {
	// Node is the name that the agent was started with. Empty: the token's.
	Node string `json:"node,omitempty"`
}

// Enroll gets a node's join bundle by a token of Kubernetes. The node is registered if it is
// not yet. It may be repeated at any time: each bundle has certificates of its own.
func Enroll(ctx context.Context, b Bootstrap, token, node string) (*JoinBundle, error) {
	bases, roots, err := b.parse()
	if err != nil {
		return nil, err
	}
	c := NewClientTLS("of this node", bases, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})
	defer c.Close()
	c.token = token
	var out JoinBundle
	return &out, c.call(ctx, http.MethodPost, "/v1/enroll", nil, EnrollRequest{Node: node}, &out)
}

// ShareCertificate says whether two bundles in PEM have a certificate in common.
func ShareCertificate(a, b []byte) bool {
	in := map[string]bool{}
	for block, rest := pem.Decode(a); block != nil; block, rest = pem.Decode(rest) {
		in[string(block.Bytes)] = true
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if in[string(block.Bytes)] {
			return true
		}
	}
	return false
}
