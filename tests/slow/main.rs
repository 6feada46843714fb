//! What takes long, starts processes, or needs the rights of a superuser.

mod node;
mod purge_log;
