// Package harness is the root of the SGLang experiment SDK. Start at package sglangtest.
package harness
