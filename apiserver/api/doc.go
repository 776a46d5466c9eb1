// Package api is the language between the API server, the agents' own API and
// whoever calls them: message types, errors, contexts and an HTTPS client.
//
// What the server does with a message is package apiserver's business; what an
// operator sees of one is the command line's.
package api
