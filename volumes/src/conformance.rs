//! What every volume driver must do, as a suite to run over one.
