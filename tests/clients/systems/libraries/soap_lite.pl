# Accounts by SOAP::Lite: a login, then the session in a SOAP header. BASE_URL RUN, the password in PASSWORD.
use strict;
use warnings;
use JSON::PP;
use SOAP::Lite;

my ($base, $run) = @ARGV;
my @failures;
my $space = 'urn:partner.soap.sforce.com';
my $soap = SOAP::Lite->new(
    proxy => [ "$base/services/Soap/u/59.0", timeout => 120 ], readable => 0,
    on_fault => sub { my (undef, $told) = @_; push @failures, ref $told ? $told->faultstring : 'no answer'; SOAP::SOM->new },
);
$soap->ns($space, 'u')->on_action(sub { '""' });
my @header;

sub call {
    my ($name, @data) = @_;
    return $soap->call(SOAP::Data->name("u:$name"), @data, @header);
}

my $told = call('login',
    SOAP::Data->name('u:username')->value('script')->type(''), SOAP::Data->name('u:password')->value($ENV{PASSWORD})->type(''));
my $session = $told->valueof('//sessionId');
if ($session) {
    $soap->endpoint($told->valueof('//serverUrl'));
    my $id = SOAP::Data->name('u:sessionId')->value($session)->type('');
    @header = (SOAP::Header->name('u:SessionHeader')->value(\SOAP::Data->value($id)));
    for (1 .. 4) {
        my @rows = call('query', SOAP::Data->name('u:queryString')->value('SELECT Name FROM Account')->type(''))->valueof('//records');
        push @failures, 'a page is not whole' unless @rows == 25;
    }
    for my $number (0 .. 11) {
        my $account = \SOAP::Data->value(
            SOAP::Data->name('u:type')->value('Account')->type(''), SOAP::Data->name('u:Name')->value("$run-$number")->type('')
        );
        my $made = call('create', SOAP::Data->name('u:sObjects')->value($account));
        push @failures, "account $number was not made" unless ($made->valueof('//success') || '') eq 'true';
    }
    call('logout');
} else {
    push @failures, 'no session';
}
print encode_json({ failures => \@failures }), "\n";
exit(@failures ? 1 : 0);
