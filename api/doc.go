// Package api is the language of the API server's and the agents' APIs: messages, errors,
// contexts and an HTTPS client.
//
// Package apiserver decides what happens with a message, and the command line what an
// operator sees of it.
package api
