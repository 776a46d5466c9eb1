package enroll

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
)

// clockSkew is how far the clocks of two machines may be apart.
const clockSkew = time.Minute

// claims are those of a service account's token that are of interest before Kubernetes has
// said whether it is one.
type claims struct {
	Subject  string   `json:"sub"`
	Audience audience `json:"aud"`
	Expires  float64  `json:"exp"`
	Begins   float64  `json:"nbf"`
}

// audience is one or several.
type audience []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audience) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(a))
}

// Plausible returns an error if Kubernetes cannot accept a token as an agent's, by what the
// token says of itself. It proves nothing: it only keeps what anybody can send here from
// becoming requests to Kubernetes.
func (e *Enroller) Plausible(token string) error {
	if err := e.plausible(token, time.Now()); err != nil {
		return api.Refuse(http.StatusUnauthorized, "give the agent a projected token of the service account "+e.conf.Namespace+"/"+e.conf.Account+" with the audience "+api.TokenAudience,
			"the token cannot be an agent's: %v", err)
	}
	return nil
}

func (e *Enroller) plausible(token string, now time.Time) error {
	c, err := readClaims(token)
	switch at := float64(now.Unix()); {
	case err != nil:
		return fmt.Errorf("it is not a service account's: %w", err)
	case c.Expires+clockSkew.Seconds() < at:
		return errors.New("it has expired")
	case c.Begins-clockSkew.Seconds() > at:
		return errors.New("it is not valid yet: are the clocks right?")
	case !slices.Contains(c.Audience, api.TokenAudience):
		return fmt.Errorf("it is for %q, not for %s", strings.Join(c.Audience, ", "), api.TokenAudience)
	case c.Subject != e.user():
		return fmt.Errorf("it is that of %q, and agents run as %s", c.Subject, e.user())
	}
	return nil
}

// readClaims reads the claims of a token without checking its signature.
func readClaims(token string) (c claims, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errors.New("it does not have three parts")
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(text, &c)
}
