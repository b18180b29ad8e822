//go:build tools

// Package tools names the program that the testbed builds, so that go.mod keeps what it needs.
package tools

import _ "sigs.k8s.io/kwok/cmd/kwok"
