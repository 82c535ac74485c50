//! A VM's memory in one transaction.
