#!/usr/bin/env perl
# Perl HTTP::Tiny: http_tiny.pl URL
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use HTTP::Tiny;

my $base  = shift;
my %extra = defined $ENV{AUTH} ? (Authorization => $ENV{AUTH}) : ();
my $agent = HTTP::Tiny->new(verify_SSL => 1, timeout => 30, default_headers => \%extra);

sub call {
    my ($method, $path, %options) = @_;
    my $response = $agent->request($method, $base . $path, \%options);
    print "> $method $path\n$response->{status} $response->{reason}\n";
    for my $name (sort keys %{ $response->{headers} }) {
        my $value = $response->{headers}{$name};
        print "$name: $_\n" for ref $value ? @$value : $value;
    }
    print sha256_hex($response->{content} // ''), "\n";
}

call('GET', $_) for '/json?x=1&y=%2F', '/gzip', '/missing', '/moved', '/chunked', '/large';
call('HEAD', '/json');
call('POST', '/items', headers => { 'Content-Type' => 'application/json' }, content => '{"name": "bolt"}');
