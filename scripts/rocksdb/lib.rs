//! Empty: this package exists for the archive that its dependency builds.
