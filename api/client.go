package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Client talks to one API server, or to one agent's API. Several goroutines
// may use it. Calls end with their context; there is no other timeout.
type Client struct {
	name  string
	bases []*url.URL // of servers of which any will do
	at    atomic.Int32
	http  *http.Client
	token string // shown in place of a certificate; empty: none
}

// NewClient creates a client from a context. It does not connect yet.
func NewClient(x Context) (*Client, error) {
	var bases []*url.URL
	for _, server := range append([]string{x.Server}, x.Servers...) {
		base, err := url.Parse(server)
		if err != nil || base.Scheme != "https" || base.Host == "" {
			return nil, fmt.Errorf("context %q: server %q is not an https URL", x.Name, server)
		}
		bases = append(bases, base)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(x.CA)) {
		return nil, fmt.Errorf("context %q: ca holds no certificate", x.Name)
	}
	pair, err := tls.X509KeyPair([]byte(x.Cert), []byte(x.Key))
	if err != nil {
		return nil, fmt.Errorf("context %q: certificate: %w", x.Name, err)
	}
	return NewClientTLS(x.Name, bases, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}), nil
}

// connectPatience is how long a client tries to connect to a server, and hurriedPatience
// how long if there are others.
const (
	connectPatience = 5 * time.Second
	hurriedPatience = 2 * time.Second
)

// NewClientTLS creates a client of one or several servers, of which any will do, with the
// caller's own TLS configuration.
func NewClientTLS(name string, bases []*url.URL, conf *tls.Config) *Client {
	patience := connectPatience
	if len(bases) > 1 {
		patience = hurriedPatience
	}
	return &Client{name: name, bases: bases, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig:     conf,
		DialContext:         (&net.Dialer{Timeout: patience}).DialContext,
		TLSHandshakeTimeout: patience,
		IdleConnTimeout:     90 * time.Second,
		// HTTP/1.1 on purpose: over HTTP/2, the reason why a server refuses our certificate
		// is lost, and the error is "could not be established".
	}}}
}

// NewUnixClient creates a client for the API on a unix socket, that of the agent on this
// machine.
func NewUnixClient(path string) *Client {
	var d net.Dialer
	return &Client{name: path, bases: []*url.URL{{Scheme: "http", Host: "unix"}}, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
	}}}
}

// Name is the name of the context.
func (c *Client) Name() string { return c.name }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do makes a request to the server that answered last, and while none answers, to each of
// the others once. A change is made again only if it was not sent: otherwise it may have
// been made.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var payload []byte
	contentType := ""
	switch b := body.(type) {
	case nil:
	case []byte:
		payload, contentType = b, "application/yaml"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		payload, contentType = text, "application/json"
	}
	var failed error
	for i := range c.bases {
		at := (int(c.at.Load()) + i) % len(c.bases)
		u := c.bases[at].JoinPath(path)
		u.RawQuery = query.Encode()
		resp, sent, err := c.send(ctx, method, u, contentType, payload)
		if err == nil {
			c.at.Store(int32(at))
			if resp.StatusCode >= 400 {
				defer resp.Body.Close()
				return nil, readError(resp)
			}
			return resp, nil
		}
		if failed == nil {
			failed = c.unreachable(c.bases[at], err)
		}
		if ctx.Err() != nil || sent && method != http.MethodGet {
			break
		}
	}
	return nil, failed
}

// send makes one request to one server. sent reports whether it may have got there.
func (c *Client) send(ctx context.Context, method string, u *url.URL, contentType string, payload []byte) (resp *http.Response, sent bool, err error) {
	// The transport itself tries again only where nothing was written, so its last try
	// counts.
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { sent = false },
		GotConn: func(httptrace.GotConnInfo) { sent = true },
	})
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(payload))
	if err != nil {
		return nil, false, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err = c.http.Do(req)
	return resp, sent, err
}

// unreachable explains a failed connection to an operator.
func (c *Client) unreachable(base *url.URL, err error) error {
	var expired x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch text := err.Error(); {
	case errors.As(err, &expired) && expired.Reason == x509.Expired:
		return fmt.Errorf("cluster %q at %s: the server's certificate has expired: restart its API server, which issues a new one: %w", c.name, base.Host, err)
	case errors.As(err, &unknown):
		return fmt.Errorf("cluster %q at %s: the server's certificate is not signed by the context's ca: copy the context from that cluster again: %w", c.name, base.Host, err)
	case strings.Contains(text, "tls: expired certificate"):
		return fmt.Errorf("cluster %q at %s does not accept the context's certificate, which has expired: ask its operator for a new one: %w", c.name, base.Host, err)
	case strings.Contains(text, "remote error: tls:"):
		return fmt.Errorf("cluster %q at %s does not accept the context's certificate, which is another cluster's or too old: ask its operator for a new one: %w", c.name, base.Host, err)
	}
	if base.Scheme == "http" {
		return fmt.Errorf("reach the agent of this machine: %w", cause(err))
	}
	return fmt.Errorf("reach cluster %q at %s: %w", c.name, base.Host, cause(err))
}

// noAnswer is a deadline in words that do not sound like a context of the contexts file.
type noAnswer struct{ error }

func (noAnswer) Error() string   { return "no answer in time" }
func (e noAnswer) Unwrap() error { return e.error }

// cause strips the method and URL from a failed request's error.
func cause(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return noAnswer{err}
	}
	return err
}

// call makes one request. If out is nil, the answer is discarded.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, out any) error {
	resp, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read answer of %s: %w", resp.Request.URL.Host, err)
	}
	return nil
}

// SilentNodes is a header that lists the nodes whose agents did not answer, separated by
// commas.
const SilentNodes = "Weft-Silent-Nodes"

// maxLine limits a line of a stream; an object is at most a quarter of that.
const maxLine = 4 << 20

// stream calls each with every line of an NDJSON answer until the stream, ctx
// or each ends. The line is only valid during the call. The header is nil if there
// was no answer.
func (c *Client) stream(ctx context.Context, path string, query url.Values, each func(line []byte) error) (http.Header, error) {
	resp, err := c.do(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		if err := each(lines.Bytes()); err != nil {
			return resp.Header, err
		}
	}
	if err := lines.Err(); err != nil && ctx.Err() == nil {
		return resp.Header, fmt.Errorf("stream from %s ended: %w", resp.Request.URL.Host, err)
	}
	return resp.Header, ctx.Err()
}

// Apply applies a manifest of one or more YAML documents, all of it or nothing.
func (c *Client) Apply(ctx context.Context, manifest []byte, opts ManifestOptions) (*ApplyResult, error) {
	var out ApplyResult
	return &out, c.call(ctx, http.MethodPost, "/v1/apply", opts.query(), manifest, &out)
}

// DeleteManifest deletes the objects a manifest names; those that do not exist
// are reported, not treated as errors.
func (c *Client) DeleteManifest(ctx context.Context, manifest []byte, opts ManifestOptions) (*ApplyResult, error) {
	var out ApplyResult
	return &out, c.call(ctx, http.MethodPost, "/v1/delete", opts.query(), manifest, &out)
}

// inNamespace is a query for one namespace, or for all of them if it is "".
func inNamespace(namespace string) url.Values {
	query := url.Values{}
	if namespace != "" {
		query.Set("namespace", namespace)
	}
	return query
}

func objectPath(plural, namespace, name string) string {
	path := "/v1/objects/" + url.PathEscape(plural)
	if name != "" {
		if namespace == "" {
			namespace = "_"
		}
		path += "/" + url.PathEscape(namespace) + "/" + url.PathEscape(name)
	}
	return path
}

// Objects lists objects of a kind; plural also takes the singular, the kind
// and its short name. An empty namespace means all of them.
func (c *Client) Objects(ctx context.Context, plural, namespace string) (*ObjectList, error) {
	query := inNamespace(namespace)
	var out ObjectList
	return &out, c.call(ctx, http.MethodGet, objectPath(plural, "", ""), query, nil, &out)
}

// Object gets one object; namespace is empty for kinds that have none.
func (c *Client) Object(ctx context.Context, plural, namespace, name string) (*ObjectList, error) {
	var out ObjectList
	return &out, c.call(ctx, http.MethodGet, objectPath(plural, namespace, name), nil, nil, &out)
}

// Delete deletes one object.
func (c *Client) Delete(ctx context.Context, plural, namespace, name string, opts ManifestOptions) (*ApplyResult, error) {
	var out ApplyResult
	return &out, c.call(ctx, http.MethodDelete, objectPath(plural, namespace, name), opts.query(), nil, &out)
}

// Watch calls each with the existing objects, then with every change.
func (c *Client) Watch(ctx context.Context, plural, namespace string, each func(WatchEvent) error) error {
	query := inNamespace(namespace)
	_, err := c.stream(ctx, "/v1/watch/"+url.PathEscape(plural), query, func(line []byte) error {
		var ev WatchEvent
		if err := json.Unmarshal(line, &ev); err != nil {
			return fmt.Errorf("read watch event: %w", err)
		}
		return each(ev)
	})
	return err
}

// Status returns the state of the cluster, its nodes and its peers.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var out Status
	return &out, c.call(ctx, http.MethodGet, "/v1/status", nil, nil, &out)
}

// Servers lists the cluster's API servers.
func (c *Client) Servers(ctx context.Context) (*ServerList, error) {
	var out ServerList
	return &out, c.call(ctx, http.MethodGet, "/v1/servers", nil, nil, &out)
}

// AddServer admits another API server and returns its join bundle.
func (c *Client) AddServer(ctx context.Context, server ServerRequest) (*ServerBundle, error) {
	var out ServerBundle
	return &out, c.call(ctx, http.MethodPost, "/v1/servers", nil, server, &out)
}

// RemoveServer removes an API server for good, by its name or ID.
func (c *Client) RemoveServer(ctx context.Context, name string) (*ServerChange, error) {
	var out ServerChange
	return &out, c.call(ctx, http.MethodDelete, "/v1/servers/"+url.PathEscape(name), nil, nil, &out)
}

// ReplaceServer lets an API server whose disk was lost join again.
func (c *Client) ReplaceServer(ctx context.Context, name string) (*ServerChange, error) {
	var out ServerChange
	return &out, c.call(ctx, http.MethodPost, "/v1/servers/"+url.PathEscape(name)+"/replace", nil, nil, &out)
}

// Peers lists the peers.
func (c *Client) Peers(ctx context.Context) (*PeerList, error) {
	var out PeerList
	return &out, c.call(ctx, http.MethodGet, "/v1/peers", nil, nil, &out)
}

// Invite returns what the named cluster needs to read us.
func (c *Client) Invite(ctx context.Context, peer string) (*Invite, error) {
	var out Invite
	return &out, c.call(ctx, http.MethodPost, "/v1/peers/invite", nil, InviteRequest{Peer: peer}, &out)
}

// InviteCilium returns what the named cluster, which runs Cilium, needs to read us.
func (c *Client) InviteCilium(ctx context.Context, peer string) (*Invite, error) {
	var out Invite
	return &out, c.call(ctx, http.MethodPost, "/v1/peers/invite", nil, InviteRequest{Peer: peer, Cilium: true}, &out)
}

// AddCiliumPeer adds a cluster that runs Cilium.
func (c *Client) AddCiliumPeer(ctx context.Context, in *CiliumPeer) (*PeerStatus, error) {
	var out PeerStatus
	return &out, c.call(ctx, http.MethodPost, "/v1/peers/cilium", nil, in, &out)
}

// AddPeer adds the cluster that the invite is from.
func (c *Client) AddPeer(ctx context.Context, in *Invite) (*PeerStatus, error) {
	var out PeerStatus
	return &out, c.call(ctx, http.MethodPost, "/v1/peers", nil, in, &out)
}

// RemovePeer removes a peer and everything copied from it. It changes nothing at the peer.
func (c *Client) RemovePeer(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/peers/"+url.PathEscape(name), nil, nil, nil)
}

// ReleasePeer carries out a peer's held deletions.
func (c *Client) ReleasePeer(ctx context.Context, name string) (*PeerStatus, error) {
	var out PeerStatus
	return &out, c.call(ctx, http.MethodPost, "/v1/peers/"+url.PathEscape(name)+"/release", nil, nil, &out)
}

// ForgetPeer unblocks the CIDRs of a removed peer, or one CIDR.
func (c *Client) ForgetPeer(ctx context.Context, what string) (*FormerPeer, error) {
	var out FormerPeer
	return &out, c.call(ctx, http.MethodPost, "/v1/peers/"+url.PathEscape(what)+"/forget", nil, nil, &out)
}

// Nodes lists the cluster's nodes.
func (c *Client) Nodes(ctx context.Context) (*NodeList, error) {
	var out NodeList
	return &out, c.call(ctx, http.MethodGet, "/v1/nodes", nil, nil, &out)
}

// AddNode registers a node and returns its join bundle.
func (c *Client) AddNode(ctx context.Context, node NodeRequest) (*JoinBundle, error) {
	var out JoinBundle
	return &out, c.call(ctx, http.MethodPost, "/v1/nodes", nil, node, &out)
}

// RemoveNode removes a node and the pods declared on it, and returns what it removed.
// While the node's agent runs, it is refused without force.
func (c *Client) RemoveNode(ctx context.Context, name string, force bool) (*ApplyResult, error) {
	query := url.Values{}
	if force {
		query.Set("force", "true")
	}
	var out ApplyResult
	return &out, c.call(ctx, http.MethodDelete, "/v1/nodes/"+url.PathEscape(name), query, nil, &out)
}

// RotateKeys asks every node for new tunnel keys.
func (c *Client) RotateKeys(ctx context.Context) (*RotateResult, error) {
	var out RotateResult
	return &out, c.call(ctx, http.MethodPost, "/v1/rotate", nil, nil, &out)
}

// ReleaseNodes makes nodes use this store that still keep the state of one that was lost.
func (c *Client) ReleaseNodes(ctx context.Context) (*ReleaseResult, error) {
	var out ReleaseResult
	return &out, c.call(ctx, http.MethodPost, "/v1/release", nil, nil, &out)
}

// Identities lists identities of this cluster and of its peers.
func (c *Client) Identities(ctx context.Context) (*IdentityList, error) {
	var out IdentityList
	return &out, c.call(ctx, http.MethodGet, "/v1/identities", nil, nil, &out)
}

// Services lists services with their backends in every cluster.
func (c *Client) Services(ctx context.Context) (*ServiceList, error) {
	var out ServiceList
	return &out, c.call(ctx, http.MethodGet, "/v1/services", nil, nil, &out)
}

// Backup writes a backup of the cluster's store to w. It is complete only if the error is
// nil and its checksum, which is at its end, matches.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/backup", nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the API server at %s ended the backup before it was complete: look at its log", resp.Request.URL.Host)
	}
	return err
}

// Observe streams flow events as JSON lines: an API server's are those of all its nodes,
// an agent's are its own. The query is a filter of package flow. A line is only valid
// during the call.
//
// It returns the nodes whose agents did not answer; with follow, they are not known.
func (c *Client) Observe(ctx context.Context, query url.Values, each func(line []byte) error) (silent []string, err error) {
	head, err := c.stream(ctx, "/v1/observe", query, each)
	if names := head.Get(SilentNodes); names != "" {
		silent = strings.Split(names, ",")
	}
	return silent, err
}

// Tables lists the tables of a node's agent. An empty node means that this
// client talks to the agent itself.
func (c *Client) Tables(ctx context.Context, node string) (*TableList, error) {
	var out TableList
	return &out, c.call(ctx, http.MethodGet, tablesPath(node, ""), nil, nil, &out)
}

// Table reads one table of a node's agent.
func (c *Client) Table(ctx context.Context, node, name string) (*Table, error) {
	var out Table
	return &out, c.call(ctx, http.MethodGet, tablesPath(node, name), nil, nil, &out)
}

func tablesPath(node, table string) string {
	path := "/v1/tables"
	if node != "" {
		path = "/v1/nodes/" + url.PathEscape(node) + "/tables"
	}
	if table != "" {
		path += "/" + url.PathEscape(table)
	}
	return path
}

// GetRaw fetches a path as it is, such as "/v1/status" of an agent.
func (c *Client) GetRaw(ctx context.Context, path string, query url.Values) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, "/"+strings.TrimPrefix(path, "/"), query, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, 64<<20))
}
